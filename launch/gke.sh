#!/usr/bin/env bash
# One training run on TPU slices of a GKE cluster, through XPK (https://github.com/AI-Hypercomputer/xpk).
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh ACTION --cluster=CLUSTER --zone=ZONE [OPTIONS] [-- COMMAND...]

actions
  create   make the cluster with its TPU node pools
  run      start COMMAND as workload NAME on every host; XPK packs this checkout into the image
  list     what runs on the cluster
  tail     follow the first host's log
  stop     let every host save and end (SIGTERM), and remove the workload
  delete   delete the cluster

options
  --name=NAME        of the workload (run, tail, stop); lower-case letters, digits and dashes
  --type=TYPE        accelerator type (create, run), such as v5p-256 or v6e-64
  --slices=1         TPU slices (create, run); several are joined over the data centre network
  --image=IMAGE      base image with Python 3.11 or later (run; default python:3.12-slim)
  --project=PROJECT  default: gcloud's own
  --spot             preemptible and cheaper (create)
  --restarts=100     how often a preempted or failed workload is started again (run)
  --dry-run          print the commands instead of running them

A run that is told to stop saves and exits with status 143, one of those after which XPK starts the
workload again. Checkpoints must live where all hosts see them: give a --workdir on NFS, or a gs://
URL (docs/buckets.md). Example:
  launch/gke.sh run --cluster=tpus --zone=us-east5-a --name=prior --type=v5p-256 -- \
    python -m unclip_jax.train --config=experiments/prior.py --workdir=gs://bucket/run/prior
TEXT
}

readonly GRACE=180 # seconds between SIGTERM and SIGKILL; a save has to fit in

fail() {
  echo "gke: $1" >&2
  exit 2
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cluster="" zone="" name="" type="" slices=1 image="python:3.12-slim" restarts=100 dry_run=0
common=() extra=() command=()
action="${1:-}"
(($#)) && shift
while (($#)); do
  case "$1" in
    --cluster=*) cluster="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --project=*) common+=("$1") ;;
    --spot) extra+=(--spot) ;;
    --dry-run) dry_run=1 ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option '$1'; see launch/gke.sh --help" ;;
  esac
  shift
done
case "$action" in
  -h | --help | "") usage && exit 0 ;;
  create | run | list | tail | stop | delete) ;;
  *) fail "unknown action '$action'; known: create, run, list, tail, stop, delete" ;;
esac
[[ -n "$cluster" && -n "$zone" ]] || fail "give --cluster and --zone"
common+=(--cluster="$cluster" --zone="$zone")
case "$action" in
  create | run) [[ -n "$type" ]] || fail "$action needs --type" ;;
esac
case "$action" in
  run | tail | stop)
    [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
      fail "$action needs --name, lower-case letters, digits and dashes; it is '$name'"
    ;;
esac
[[ "$slices" =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; give a count"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts'; give a count"
if [[ "$action" == run ]]; then
  ((${#command[@]})) || fail "run needs a command after --"
fi

execute() {
  if ((dry_run)); then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

create() {
  execute xpk cluster create "${common[@]}" --tpu-type="$type" --num-slices="$slices" \
    ${extra[@]+"${extra[@]}"}
}

# `exec`, so that the signal of a preemption reaches the training process itself.
run() {
  local quoted
  quoted="$(printf '%q ' "${command[@]}")"
  execute xpk workload create "${common[@]}" --workload="$name" --tpu-type="$type" \
    --num-slices="$slices" --base-docker-image="$image" --script-dir="$root" \
    --max-restarts="$restarts" --termination-grace-period-seconds="$GRACE" \
    --command="pip install --quiet -e '.[tpu]' && source launch/env.sh tpu && \
export UNCLIP_DISTRIBUTED=1 && exec $quoted"
}

list() { execute xpk workload list "${common[@]}"; }

follow() {
  execute kubectl logs --follow --tail=100 \
    --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}

stop() { execute xpk workload delete "${common[@]}" --workload="$name"; }
delete() { execute xpk cluster delete "${common[@]}"; }

case "$action" in
  tail) follow ;;
  *) "$action" ;;
esac
