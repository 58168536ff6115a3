#!/usr/bin/env bash
# One training run on a GKE cluster of TPU slices or GPU nodes, through XPK
# (https://github.com/AI-Hypercomputer/xpk).
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh ACTION --cluster=CLUSTER --zone=ZONE [OPTIONS] [-- COMMAND...]

actions
  build    build the image from Dockerfile and push it (needs only --image)
  create   make the cluster with its node pools
  run      start COMMAND as workload NAME on every host, in the image
  list     what runs on the cluster
  tail     follow the first host's log
  logs     follow the logs of all hosts; every line names its host
  stop     let every host save and end (SIGTERM), and remove the workload
  delete   delete the cluster

options
  --name=NAME        name of the workload (run, tail, logs, stop); lower-case letters, digits and dashes
  --type=TYPE        TPU type (create, run), such as v5p-256 or v6e-64
  --slices=1         TPU slices (create, run); several are joined over the data centre network
  --device=DEVICE    GPU nodes instead of TPUs (create, run), such as h200-141gb-8
  --nodes=1          GPU nodes (create, run)
  --image=IMAGE      with this package (build, run), such as REGION-docker.pkg.dev/PROJECT/REPO/unclip
  --extras=LIST      extras of the package in the image (build; default tpu,gcs, or cuda13,gcs with
                     --device)
  --project=PROJECT  default: gcloud's own
  --on-demand, --spot, --flex, --reservation=NAME
                     how the nodes are paid for (create; one of them)
  --storage=NAME     mount a storage of `xpk storage attach` (run); repeatable
  --priority=medium  very-low, low, medium, high or very-high (run)
  --restarts=100     how often a preempted or failed workload is started again (run)
  --xpk-arg=ARG      added to xpk's command (create, run); repeatable
  --dry-run          print the commands instead of running them

A run that gets SIGTERM saves and exits with status 143. XPK starts a workload again after this
status, after aborts (from 127 on) and after errors of Python (1), but not after mistakes in the
arguments (2). Checkpoints must live where all hosts see them: give --workdir a gs:// URL
(docs/buckets.md), and --compilation-cache too. Example:
  launch/gke.sh build --image=us-docker.pkg.dev/project/repo/unclip
  launch/gke.sh run --cluster=tpus --zone=us-east5-a --name=prior --type=v5p-256 \
    --image=us-docker.pkg.dev/project/repo/unclip -- \
    python -m unclip_jax.train --config=experiments/prior.py:paper \
    --workdir=gs://bucket/run/prior --compilation-cache=gs://bucket/xla
TEXT
}

readonly GRACE=180 # seconds between SIGTERM and SIGKILL; a save has to fit in

fail() {
  echo "gke: $1" >&2
  exit 2
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cluster="" zone="" name="" type="" slices=1 device="" nodes=1 image="" extras="" project=""
priority="" restarts=100 dry_run=0
capacity=() storages=() extra=() command=()
action="${1:-}"
(($#)) && shift
while (($#)); do
  case "$1" in
    --cluster=*) cluster="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --device=*) device="${1#*=}" ;;
    --nodes=*) nodes="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --extras=*) extras="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --on-demand | --spot | --flex | --reservation=*) capacity+=("$1") ;;
    --storage=*) storages+=("$1") ;;
    --priority=*) priority="${1#*=}" ;;
    --xpk-arg=*) extra+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option '$1'; see launch/gke.sh --help" ;;
  esac
  shift
done
case "$action" in
  -h | --help | "") usage && exit 0 ;;
  build | create | run | list | tail | logs | stop | delete) ;;
  *) fail "unknown action '$action'; known: build, create, run, list, tail, logs, stop, delete" ;;
esac
[[ "$action" == build || (-n "$cluster" && -n "$zone") ]] || fail "give --cluster and --zone"
common=(${project:+--project="$project"} --cluster="$cluster" --zone="$zone")
case "$action" in
  create | run)
    [[ -n "$type$device" ]] || fail "$action needs --type (TPUs) or --device (GPUs)"
    [[ -z "$type" || -z "$device" ]] || fail "give --type (TPUs) or --device (GPUs), not both"
    ;;
esac
case "$action" in
  run | tail | logs | stop)
    [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
      fail "$action needs --name, lower-case letters, digits and dashes; it is '$name'"
    ;;
esac
[[ "$slices" =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; give a count"
[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "--nodes is '$nodes'; give a count"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts'; give a count"
case "$action" in
  create)
    ((${#capacity[@]} == 1)) ||
      fail "create needs one of --on-demand, --spot, --flex and --reservation=NAME"
    ;;
  run) ((${#command[@]})) || fail "run needs a command after --" ;;
esac
if [[ "$action" == build || "$action" == run ]]; then
  [[ -n "$image" ]] || fail "$action needs --image; \`launch/gke.sh build\` makes one"
fi

# The hardware, in XPK's words.
if [[ -n "$device" ]]; then
  hardware=(--device-type="$device" --num-nodes="$nodes") kind=gpu
else
  hardware=(--tpu-type="$type" --num-slices="$slices") kind=tpu
fi

# need TOOL ADVICE: end in one line if a program is missing.
need() {
  ((dry_run)) || command -v "$1" >/dev/null || fail "$1 is not installed or not on PATH; $2"
}

execute() {
  if ((dry_run)); then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

xpk_() {
  need xpk "pip install xpk (https://github.com/AI-Hypercomputer/xpk)"
  need gcloud "see https://cloud.google.com/sdk/docs/install"
  find_project
  execute xpk "$@"
}

find_project() {
  [[ -z "$project" ]] || return 0
  if ((dry_run)); then
    project=PROJECT
    return
  fi
  project="$(gcloud config get-value project 2>/dev/null || true)"
  [[ -n "$project" && "$project" != "(unset)" ]] ||
    fail "no project; give --project=PROJECT, or run \`gcloud config set project PROJECT\`"
}

build() {
  need docker "see https://docs.docker.com/engine/install"
  [[ "$kind" == tpu ]] || extras="${extras:-cuda13,gcs}"
  execute docker build --platform=linux/amd64 --build-arg=EXTRAS="${extras:-tpu,gcs}" \
    --tag="$image" "$root" && execute docker push "$image"
}

create() {
  xpk_ cluster create "${common[@]}" "${hardware[@]}" "${capacity[@]}" \
    ${extra[@]+"${extra[@]}"}
}

# `exec`, so that the signal of a preemption reaches the training process itself.
run() {
  local quoted
  quoted="$(printf '%q ' "${command[@]}")"
  xpk_ workload create "${common[@]}" --workload="$name" "${hardware[@]}" \
    --docker-image="$image" --max-restarts="$restarts" --restart-on-exit-codes=1 \
    --termination-grace-period-seconds="$GRACE" ${priority:+--priority="$priority"} \
    ${capacity[@]+"${capacity[@]}"} ${storages[@]+"${storages[@]}"} ${extra[@]+"${extra[@]}"} \
    --command="cd /unclip_jax && source launch/env.sh $kind && export UNCLIP_DISTRIBUTED=1 && \
exec $quoted"
}

list() { xpk_ workload list "${common[@]}"; }

# XPK's clusters are regional. The flag names the cluster, whatever the current context of kubectl is.
kubernetes() {
  need kubectl "run \`gcloud components install kubectl\`"
  need gcloud "see https://cloud.google.com/sdk/docs/install"
  find_project
  local region="${zone%-*}"
  execute gcloud container clusters get-credentials "$cluster" --region="$region" \
    --project="$project" &&
    execute kubectl --context="gke_${project}_${region}_$cluster" "$@"
}
follow() {
  kubernetes logs --follow --tail=100 \
    --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}
follow_all() {
  kubernetes logs --follow --tail=100 --prefix --max-log-requests=1000 \
    --selector="jobset.sigs.k8s.io/jobset-name=$name"
}

stop() { xpk_ workload delete "${common[@]}" --workload="$name"; }
delete() { xpk_ cluster delete "${common[@]}"; }

case "$action" in
  tail) follow ;;
  logs) follow_all ;;
  *) "$action" ;;
esac
