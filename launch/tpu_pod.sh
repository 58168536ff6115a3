#!/usr/bin/env bash
# One training run on a Cloud TPU slice, from creation to deletion.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- COMMAND...]

actions
  create   make the TPU VM slice
  copy     send the committed tree to every worker and install it there
  run      start COMMAND on every worker in the background, restarting it after preemption
  tail     follow worker 0's log
  stop     let every worker save and end (SIGTERM)
  watch    create, copy and run whenever the slice is gone or preempted, until COMMAND ends well
  delete   delete the slice

options
  --type=TYPE        accelerator type (create, watch), such as v5p-256 or v6e-64
  --version=VERSION  runtime image (create, watch), such as v2-alpha-tpuv6e
  --project=PROJECT  default: gcloud's own
  --spot             preemptible and cheaper (create, watch)
  --interval=60      seconds between looks (watch)
  --dry-run          print the commands instead of running them

Checkpoints must live where all workers and the next slice see them: give a --workdir on NFS, or a
gs:// URL (docs/buckets.md). Example:
  launch/tpu_pod.sh watch --name=prior --zone=us-east5-a --type=v5p-256 --version=v2-alpha-tpuv5 \
    --spot -- python -m unclip_jax.train --config=experiments/prior.py \
    --workdir=gs://bucket/run/prior
TEXT
}

fail() {
  echo "tpu_pod: $1" >&2
  exit 2
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name="" zone="" type="" version="" interval=60 dry_run=0
common=() extra=() command=()
action="${1:-}"
(($#)) && shift
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --interval=*) interval="${1#*=}" ;;
    --project=*) common+=("$1") ;;
    --spot) extra+=(--spot) ;;
    --dry-run) dry_run=1 ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option '$1'; see launch/tpu_pod.sh --help" ;;
  esac
  shift
done
case "$action" in
  -h | --help | "") usage && exit 0 ;;
  create | copy | run | tail | stop | watch | delete) ;;
  *) fail "unknown action '$action'; known: create, copy, run, tail, stop, watch, delete" ;;
esac
[[ -n "$name" && -n "$zone" ]] || fail "give --name and --zone"
common+=(--zone="$zone")
if [[ "$action" == create || "$action" == watch ]]; then
  [[ -n "$type" && -n "$version" ]] || fail "$action needs --type and --version"
fi
if [[ "$action" == run || "$action" == watch ]]; then
  ((${#command[@]})) || fail "$action needs a command after --"
fi

execute() {
  if ((dry_run)); then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

tpu() { execute gcloud compute tpus tpu-vm "$@" "${common[@]}"; }
on_all() { tpu ssh "$name" --worker=all --command="$1"; }

create() {
  tpu create "$name" --accelerator-type="$type" --version="$version" ${extra[@]+"${extra[@]}"}
}

copy() {
  local archive
  archive="$(mktemp -d)/unclip_jax.tar.gz"
  execute git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    tpu scp "$archive" "$name:unclip_jax.tar.gz" --worker=all || return
  rm -rf "$(dirname "$archive")"
  on_all "mkdir -p unclip_jax && tar -xzf unclip_jax.tar.gz -C unclip_jax && cd unclip_jax && \
python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
}

# A session of its own, so that the run outlives ssh and one kill reaches all of it.
run() {
  local quoted
  quoted="$(printf '%q ' "${command[@]}")"
  on_all "cd unclip_jax && rm -f status && source .venv/bin/activate && \
source launch/env.sh tpu && export UNCLIP_DISTRIBUTED=1 && (setsid bash -c \
'echo \$\$ > pid; launch/until_done \"\$@\"; echo \$? > status' run $quoted \
>> log.txt 2>&1 < /dev/null &)"
}

follow() { tpu ssh "$name" --worker=0 --command='tail -n 100 -F unclip_jax/log.txt'; }
# shellcheck disable=SC2016  # expands on the worker
stop() { on_all 'kill -TERM -- "-$(cat unclip_jax/pid)"'; }
delete() { tpu delete "$name" --quiet; }

state() {
  gcloud compute tpus tpu-vm describe "$name" "${common[@]}" --format='value(state)' 2>/dev/null ||
    echo GONE
}

finished() {
  gcloud compute tpus tpu-vm ssh "$name" "${common[@]}" --worker=0 \
    --command='cat unclip_jax/status 2>/dev/null' 2>/dev/null || true
}

start_over() {
  [[ "$1" == GONE ]] || delete || true
  create && copy && run
}

watch() {
  if ((dry_run)); then
    echo "# every $interval s: unless the slice is READY,"
    start_over PREEMPTED
    return
  fi
  local now status
  while true; do
    now="$(state)"
    case "$now" in
      READY)
        status="$(finished)"
        if [[ -n "$status" ]]; then
          echo "tpu_pod: the command ended with status $status" >&2
          return "$status"
        fi
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING) ;;
      *)
        echo "tpu_pod: $name is $now; starting over" >&2
        start_over "$now" || echo "tpu_pod: could not; trying again" >&2
        ;;
    esac
    sleep "$interval"
  done
}

case "$action" in
  tail) follow ;;
  *) "$action" ;;
esac
