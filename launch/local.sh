#!/usr/bin/env bash
# Train on this machine: launch/local.sh RUN.toml [--processes N] [section.key=value ...] [--fresh] [--allow FIELD]
# `doctor` in place of RUN.toml asks the launch itself what is wrong with it.
# One process on each GPU, or 2 processes on the processors where there is no GPU.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
PATH=$root/.venv/bin:$PATH

fail() {
    echo "launch/local.sh: $1" >&2
    exit 2
}

[[ $# -gt 0 && $1 != -* ]] || fail "expected RUN.toml or doctor [--processes N] [section.key=value ...]"
script=train.py words=("$1") processes=
if [[ $1 == doctor ]]; then
    script=doctor.py words=()
elif [[ ! -f $1 ]]; then
    fail "no run file $1"
fi
shift
while [[ $# -gt 0 ]]; do
    case $1 in
        --processes) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--processes: expected a number, found '${2:-}'"
            processes=$2
            shift 2 ;;
        *) words+=("$1")
            shift ;;
    esac
done

gpus=0
if [[ -e /dev/nvidiactl || -e /dev/kfd ]]; then
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
fi
if [[ $gpus -gt 0 ]]; then
    config=ddp.yaml processes=${processes:-$gpus}
    [[ $processes -le $gpus ]] || fail "--processes $processes: this machine has $gpus GPUs"
else
    config=cpu.yaml processes=${processes:-2}
fi
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
trap '' USR1  # for the processes that train; the launcher would die of it
exec accelerate launch --config_file "$root/accelerate_configs/$config" --num_processes "$processes" \
    "$root/training/$script" ${words[@]+"${words[@]}"}
