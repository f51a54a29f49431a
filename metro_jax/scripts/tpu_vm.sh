#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A run on a Cloud TPU, from this machine: create, set up, run, delete.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: bash metro_jax/scripts/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS]
         [-- WORDS OF metro_jax.train]

Commands
  create   makes the TPU VM
  setup    copies this checkout (HEAD) to all its workers and installs it
  run      trains on all workers until the run is done; a TPU that was
           preempted is deleted, created and set up again, and goes on from
           its last checkpoint
  delete   gives it back
  all      create, setup, run, delete

Flags
  --name=NAME         of the TPU VM
  --zone=ZONE         such as us-east5-a
  --type=TYPE         accelerator type, such as v5p-128          (create)
  --version=VERSION   software version (default: v2-alpha-tpuv5)
  --project=PROJECT   default: gcloud's own
  --spot              preemptible, and cheaper
  --mount=HOST:/PATH  NFS share to mount at /mnt/metro on all workers; MODEL_DIR
                      and the data must be visible to every worker
  --retries=N         how often to start again after a failure (default: 100)
  --print             print the commands, run none

Example
  bash metro_jax/scripts/tpu_vm.sh all --name=xl --zone=us-east5-a \
    --type=v5p-128 --spot --mount=10.0.0.2:/share -- \
    --gin_file=metro_lm/xl.gin --gin.MODEL_DIR=/mnt/metro/runs/xl
EOF
}

fail() {
  echo "error: $*" >&2
  exit 2
}

version=v2-alpha-tpuv5 retries=100
name='' zone='' type='' project='' spot='' mount='' print=''
[[ $# -gt 0 ]] || fail 'no command; --help lists them'
case $1 in
  create | setup | run | delete | all) verb=$1 ;;
  -h | --help) usage && exit ;;
  *) fail "$1 is not a command; there are create, setup, run, delete and all" ;;
esac
shift
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --mount=*) mount=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --spot) spot=--spot ;;
    --print) print=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "$1 is not a flag; what metro_jax.train is to get comes after --" ;;
  esac
  shift
done
train=("$@")
[[ $name ]] || fail 'no --name'
[[ $zone ]] || fail 'no --zone'
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries is not a number"

place=("--zone=$zone" ${project:+"--project=$project"})
archive=metro_jax.tar.gz

# Runs a command, or prints it as it could be typed.
do_it() {
  if [[ $print ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

on_all() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    "--command=$1"
}

create() {
  [[ $type ]] || fail 'no --type, such as --type=v5p-128'
  do_it gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
    "--accelerator-type=$type" "--version=$version" ${spot:+"$spot"}
}

setup() {
  local folder=.
  [[ $print ]] || folder=$(mktemp -d)
  do_it git archive --format=tar.gz "--output=$folder/$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$folder/$archive" "$name:" \
    "${place[@]}" --worker=all
  if [[ $mount ]]; then
    on_all "sudo apt-get update -q && sudo apt-get install -qy nfs-common && sudo mkdir -p /mnt/metro && (mountpoint -q /mnt/metro || sudo mount -t nfs $mount /mnt/metro)"
  fi
  on_all "sudo apt-get update -q && sudo apt-get install -qy make python3.11 python3.11-venv && mkdir -p metro_jax && tar -xzf $archive -C metro_jax && cd metro_jax && make install PYTHON=python3.11 EXTRAS=tpu"
}

delete() {
  do_it gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
}

state() {
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" \
    '--format=value(state)' 2>/dev/null || echo MISSING
}

run() {
  ((${#train[@]})) || fail 'nothing to train; add -- --gin_file=...'
  local words attempt
  words=$(printf '%q ' "${train[@]}")
  # A process left over from an attempt that failed would keep the chips.
  local command="cd metro_jax && (kill \$(cat train.pid) 2>/dev/null && sleep 20 || true) && echo \$\$ > train.pid && exec .venv/bin/python -m metro_jax.train ${words% }"
  for ((attempt = 0; ; attempt++)); do
    if on_all "$command"; then
      return
    fi
    ((attempt < retries)) || fail "failed $((attempt + 1)) times; see above"
    case $(state) in
      READY) echo "attempt $((attempt + 1)) failed; starting again" ;;
      *)
        echo 'the TPU is gone; making it again'
        delete || true
        until create; do sleep "${METRO_RETRY_SECONDS:-60}"; done
        setup
        ;;
    esac
    sleep "${METRO_RETRY_SECONDS:-10}"
  done
}

case $verb in
  all) create && setup && run && delete ;;
  *) "$verb" ;;
esac
