#!/usr/bin/env bash
# One training run on Cloud TPU slices, from creation to deletion.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- COMMAND...]

actions
  create   request the slices
  copy     send the committed tree to every worker and install it there
  run      start COMMAND on every worker in the background, restarting it after preemption
  tail     follow the log of worker 0 of the first slice
  logs     copy the log of every worker to --logs
  stop     let every worker save and end (SIGTERM)
  watch    create, copy and run, and again after preemption or a crash, until COMMAND ends;
           then copy the logs and delete the slices
  delete   delete the slices

options
  --type=TYPE        accelerator type (create, watch), such as v5p-256 or v6e-64
  --version=VERSION  runtime image (create, watch), such as v2-alpha-tpuv6e
  --project=PROJECT  default: gcloud's own
  --queued           request a queued resource, which waits for capacity
  --slices=1         slices that train together; several are a queued resource
  --spot             preemptible and cheaper (create, watch)
  --reserved         from a reservation (create, watch)
  --gcloud-arg=ARG   added to gcloud's create command, such as --service-account=NAME; repeatable
  --extras=tpu,gcs   extras of the package that are installed (copy, watch)
  --interval=60      seconds between checks (watch)
  --retries=8        consecutive failures (creation, installation, crash) before giving up (watch)
  --keep             do not delete the slices at the end (watch)
  --logs=DIR         default logs/NAME (logs, watch)
  --dry-run          print the commands instead of running them

Pauses after failures double up to 16 intervals. An hour of training resets their count. A command
that ends with status 2, a mistake in its arguments, is not repeated if that happens in its first
hour.

Checkpoints must live where all workers and the next slice see them: give --workdir a gs:// URL
(docs/buckets.md) or a folder on NFS, and --compilation-cache a gs:// URL. Example:
  launch/tpu_pod.sh watch --name=prior --zone=us-east5-a --type=v5p-256 --version=v2-alpha-tpuv5 \
    --queued --spot -- python -m unclip_jax.train --config=experiments/prior.py:paper \
    --workdir=gs://bucket/run/prior --compilation-cache=gs://bucket/xla
TEXT
}

readonly GRACE=180     # seconds between SIGTERM and SIGKILL; a save has to fit in
readonly HEALTHY=3600  # seconds of training after which earlier failures no longer count
readonly UNREACHABLE=10 # looks without an answer after which a slice counts as lost

say() { echo "tpu_pod: $*" >&2; }
fail() {
  say "$1"
  exit 2
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name="" zone="" type="" version="" project="" slices=1 queued=0 extras="tpu,gcs"
interval=60 retries=8 keep=0 logs="" dry_run=0
common=() extra=() command=()
action="${1:-}"
(($#)) && shift
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --queued) queued=1 ;;
    --slices=*) slices="${1#*=}" ;;
    --spot | --reserved) extra+=("$1") ;;
    --gcloud-arg=*) extra+=("${1#*=}") ;;
    --extras=*) extras="${1#*=}" ;;
    --interval=*) interval="${1#*=}" ;;
    --retries=*) retries="${1#*=}" ;;
    --keep) keep=1 ;;
    --logs=*) logs="${1#*=}" ;;
    --dry-run) dry_run=1 ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option '$1'; see launch/tpu_pod.sh --help" ;;
  esac
  shift
done
case "$action" in
  -h | --help | "") usage && exit 0 ;;
  create | copy | run | tail | logs | stop | watch | delete) ;;
  *) fail "unknown action '$action'; known: create, copy, run, tail, logs, stop, watch, delete" ;;
esac
[[ -n "$name" && -n "$zone" ]] || fail "give --name and --zone"
if [[ "$action" == create || "$action" == watch ]]; then
  [[ -n "$type" && -n "$version" ]] || fail "$action needs --type and --version"
fi
if [[ "$action" == run || "$action" == watch ]]; then
  ((${#command[@]})) || fail "$action needs a command after --"
fi
[[ "$slices" =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; give a count"
[[ "$retries" =~ ^[0-9]+$ ]] || fail "--retries is '$retries'; give a count"
[[ "$interval" =~ ^[0-9]+$ ]] || fail "--interval is '$interval'; give seconds"
[[ "$extras" =~ ^[a-z0-9,]+$ ]] || fail "--extras is '$extras'; give names such as tpu,gcs"
logs="${logs:-logs/$name}"
nodes=("$name")
if ((slices > 1)); then
  queued=1 nodes=() # the service names the slices of a request NAME-0, NAME-1, ...
  for ((index = 0; index < slices; index++)); do nodes+=("$name-$index"); done
fi
common=(${project:+--project="$project"} --zone="$zone")
if ! ((dry_run)); then
  command -v gcloud >/dev/null ||
    fail "gcloud is not installed or not on PATH; see https://cloud.google.com/sdk/docs/install"
  if [[ -z "$project" ]]; then
    project="$(gcloud config get-value project 2>/dev/null || true)"
    [[ -n "$project" && "$project" != "(unset)" ]] ||
      fail "no project; give --project=PROJECT, or run \`gcloud config set project PROJECT\`"
  fi
  errors="$(mktemp)"
  trap 'rm -f "$errors"' EXIT
fi

execute() {
  if ((dry_run)); then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

tpu() { execute gcloud compute tpus tpu-vm "$@" "${common[@]}"; }
queue() { execute gcloud compute tpus queued-resources "$@" "${common[@]}"; }

# Call a function once per slice, all at the same time; fails if one of them does.
on_each_slice() {
  local node process processes=() status=0
  for node in "${nodes[@]}"; do
    if ((dry_run)); then
      "$@" "$node"
    else
      "$@" "$node" &
      processes+=($!)
    fi
  done
  for process in ${processes[@]+"${processes[@]}"}; do wait "$process" || status=$?; done
  return "$status"
}
ssh_to() { tpu ssh "$2" --worker=all --command="$1"; }
on_all() { on_each_slice ssh_to "$1"; }

create() {
  local request=(--accelerator-type="$type")
  if ! ((queued)); then
    tpu create "$name" "${request[@]}" --version="$version" ${extra[@]+"${extra[@]}"}
    return
  fi
  if ((slices > 1)); then
    request+=(--node-count="$slices" --node-prefix="$name")
  else
    request+=(--node-id="$name")
  fi
  queue create "$name" "${request[@]}" --runtime-version="$version" ${extra[@]+"${extra[@]}"}
}

# Runtime images have Python 3.10; uv brings a later one.
copy() {
  local folder status=0
  folder="$(mktemp -d)"
  archive="$folder/unclip_jax.tar.gz"
  execute git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    on_each_slice send || status=$?
  rm -rf "$folder"
  ((status == 0)) || return "$status"
  on_all "mkdir -p unclip_jax && tar -xzf unclip_jax.tar.gz -C unclip_jax && cd unclip_jax && \
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && \
{ [ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 .venv; } && \
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[$extras]'"
}
send() { tpu scp "$archive" "$1:unclip_jax.tar.gz" --worker=all; }

# A number that tells this command from others that ran on the same slices.
identity() { printf '%q ' "${command[@]}" | cksum | tr -d ' '; }

# A session of its own, so that the run outlives ssh and one kill reaches all of it; its shell
# survives the signal to note the status.
run() {
  local quoted
  quoted="$(printf '%q ' "${command[@]}")"
  on_all "cd unclip_jax && rm -f status && echo $(identity) > command && source .venv/bin/activate && \
source launch/env.sh tpu && export UNCLIP_DISTRIBUTED=1 && (setsid bash -c \
'trap : TERM; echo \$\$ > pid; launch/until_done \"\$@\"; echo \$? > status' run $quoted \
>> log.txt 2>&1 < /dev/null &)"
}

follow() { tpu ssh "${nodes[0]}" --worker=0 --command='tail -n 100 -F unclip_jax/log.txt'; }

collect_logs() { on_each_slice collect_log; }
collect_log() {
  execute mkdir -p "$logs/$1" &&
    tpu ssh "$1" --worker=all --command='cat unclip_jax/log.txt' --output-directory="$logs/$1"
}

# shellcheck disable=SC2016  # expands on the worker
stop() { on_all 'kill -TERM -- "-$(cat unclip_jax/pid)"'; }

# End what still runs on any worker before it is started again.
halt() {
  on_all "cd unclip_jax && pid=\$(cat pid) && kill -TERM -- -\$pid 2>/dev/null && \
for _ in \$(seq $GRACE); do kill -0 -- -\$pid 2>/dev/null || exit 0; sleep 1; done && \
kill -KILL -- -\$pid; true"
}

delete() {
  if ((queued)); then
    queue delete "$name" --force --quiet
  else
    tpu delete "$name" --quiet
  fi
}

# The state of the slices in one word; an answer that is neither a state nor "not found" is left
# in $errors.
state() {
  local kind=tpu-vm field=state
  ((queued)) && kind=queued-resources field=state.state
  if gcloud compute tpus "$kind" describe "$name" "${common[@]}" --format="value($field)" \
    2>"$errors"; then
    return
  fi
  if grep -q 'NOT_FOUND\|was not found' "$errors"; then echo GONE; else echo UNANSWERED; fi
}
reason() { grep . "$errors" | head -n 1 | sed 's/^ERROR: *//' || true; }

# One line per worker: the status with which the command ended, "running", "absent", or "other" if
# another command runs; "silent" if a worker does not answer.
statuses() {
  local same look
  same="$(identity)"
  # shellcheck disable=SC2016  # expands on the worker
  look='cd unclip_jax 2>/dev/null || true
s=absent same=false
[ "$(cat command 2>/dev/null)" != '"$same"' ] || same=true
if [ -s status ]; then ! $same || s=$(cat status)
elif kill -0 "$(cat pid 2>/dev/null)" 2>/dev/null; then $same && s=running || s=other; fi
echo "status: $s"'
  { on_all "$look" 2>/dev/null || echo "status: silent"; } |
    sed -n 's/^.*status: \([a-z0-9][a-z0-9]*\).*$/\1/p'
}

# Copy the logs, delete the slices, and exit.
finish() {
  collect_logs >/dev/null 2>&1 || say "the logs of some workers could not be copied"
  if ((keep)); then
    say "$name is kept; delete it with: launch/tpu_pod.sh delete --name=$name --zone=$zone" \
      "$( ((queued)) && echo --queued)"
  else
    delete || say "$name could not be deleted; it costs money until it is"
  fi
  exit "$1"
}

failures=0
# Count a failure, pause, and give up at the limit.
failed() {
  local pause
  failures=$((failures + 1))
  if ((failures > retries)); then
    say "$1; gave up after $retries retries"
    finish 1
  fi
  pause=$((interval * 2 ** (failures > 5 ? 4 : failures - 1)))
  say "$1; retry $failures of $retries in $pause s"
  sleep "$pause"
}

request() {
  started=""
  if create 2>"$errors"; then return; fi
  cat "$errors" >&2
  if grep -q 'INVALID_ARGUMENT\|PERMISSION_DENIED\|unrecognized arguments' "$errors"; then
    fail "the request for $name was rejected: $(reason)"
  fi
  failed "$name could not be created"
}

start() {
  if copy && run; then
    started=$SECONDS
  else
    failed "$name could not be set up"
  fi
}

# React to what the workers say: $1, sorted and without repetitions.
react() {
  local seen="$1" bad
  bad="$(grep -E '^[0-9]+$' <<<"$seen" | grep -vx 0 | head -n 1 || true)"
  if grep -qx running <<<"$seen"; then
    started="${started:-$SECONDS}"
    if ((SECONDS - started >= HEALTHY)); then failures=0 proven=1; fi
  fi
  if [[ -z "$seen" ]] || grep -qx silent <<<"$seen"; then
    silent=$((silent + 1))
    ((silent < UNREACHABLE)) && return
    silent=0
    delete || true
    failed "the workers of $name do not answer; creating it again"
    return
  fi
  silent=0
  if grep -qx other <<<"$seen"; then
    fail "another command runs on $name; end it with \`launch/tpu_pod.sh stop\` first"
  fi
  if ((fresh)) && [[ -n "$bad" ]]; then seen=absent started=""; fi # it failed before this watch
  fresh=0
  if [[ "$seen" =~ ^143(.running)?$ ]]; then # stopped, or the slice is about to go
    if ((stopping)) && [[ "$seen" == 143 ]]; then
      say "the command was stopped"
      finish 143
    fi
    stopping=1
    return
  fi
  stopping=0
  if grep -qx absent <<<"$seen"; then # a new slice, or workers that were started again
    [[ -z "$started" ]] || failed "the command is gone from some workers"
    halt >/dev/null 2>&1 || true
    start
  elif [[ "$bad" == 2 ]] && ! ((proven)); then
    say "the command ended with status 2, a mistake in its arguments; see $logs"
    finish 2
  elif [[ -n "$bad" ]]; then
    failed "the command ended with status $bad"
    if halt && run; then started=$SECONDS; fi
  elif [[ "$seen" == 0 ]]; then
    say "the command ended well"
    finish 0
  fi
}

watch() {
  local now first=1
  started="" proven=0 silent=0 stopping=0 fresh=1
  if ((dry_run)); then
    echo "# when $name is gone or preempted:"
    delete && create
    echo "# when it is ready and nothing runs:"
    copy && run
    echo "# when the command crashed:"
    halt && run
    echo "# when the command ended:"
    collect_logs
    ((keep)) || delete
    return
  fi
  trap 'say "no longer watching; $name remains"; exit 130' INT TERM
  while true; do
    now="$(state)"
    [[ -n "$now" ]] || now=UNANSWERED
    case "$now" in
      READY | ACTIVE) react "$(statuses | sort -u)" ;;
      GONE) request ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED)
        say "$name is $now; creating it again"
        delete || true
        [[ "$now" != FAILED ]] || failed "the request for $name failed"
        request
        ;;
      UNANSWERED)
        ((first)) && fail "the state of $name in $zone cannot be read: $(reason)"
        say "the state of $name cannot be read: $(reason)"
        ;;
    esac # all other states pass
    first=0
    sleep "$interval"
  done
}

case "$action" in
  tail) follow ;;
  logs) collect_logs ;;
  *) "$action" ;;
esac
