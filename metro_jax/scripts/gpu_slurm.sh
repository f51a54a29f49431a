#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A run on a SLURM cluster of GPUs, one process for each GPU.
#
#   sbatch --nodes=4 metro_jax/scripts/gpu_slurm.sh \
#     --gin_file=metro_lm/xl.gin --gin.MODEL_DIR=/shared/runs/xl
#
# Submit it from the checkout, whose .venv all nodes see. Flags of sbatch come
# before the script (--partition, --account, --time), those of metro_jax.train
# after it. Three minutes before its time is up the run saves a checkpoint, and
# the job queues again and goes on. METRO_PRINT=1 prints what would be run.
#
#SBATCH --job-name=metro_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --output=metro_jax_%j.log
set -euo pipefail

if (($# == 0)); then
  echo 'error: nothing to train; add --gin_file=... after the script' >&2
  exit 2
fi

command=(
  srun --kill-on-bad-exit=1 --label
  "${METRO_PYTHON:-.venv/bin/python}" -m metro_jax.train "$@"
)
if [[ ${METRO_PRINT:-} ]]; then
  printf '%q ' "${command[@]}" | sed 's/ $//'
  echo
  exit
fi

again=
interrupted=
# scancel with a signal reaches the step, not this script: each process
# finishes its step and saves.
time_is_up() {
  again=yes
  interrupted=yes
  scancel --signal=TERM "$SLURM_JOB_ID" ||
    echo 'warning: scancel failed; the run ends at the time limit' >&2
}
trap time_is_up USR1

"${command[@]}" &
step=$!
# A trap ends `wait` with a status of its own. The step's is still to be had,
# even if it has ended meanwhile: the shell keeps it.
while true; do
  interrupted=
  status=0
  wait "$step" || status=$?
  [[ $interrupted ]] || break
done
if [[ $again && $status -eq 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
