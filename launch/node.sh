#!/usr/bin/env bash
# One machine's part of a training, for launch/ssh.sh, launch/kubernetes.yaml, or by hand on each machine:
#   PET_NNODES=2 PET_NPROC_PER_NODE=8 PET_NODE_RANK=R PET_MASTER_ADDR=HOST_0 PET_MASTER_PORT=29500 \
#       launch/node.sh RUN.toml [section.key=value ...] [--allow FIELD]
# `doctor` in place of RUN.toml asks the launch itself what is wrong with it.
# SIGTERM (a pod that is evicted), SIGHUP and SIGINT become SIGUSR1 for what trains: all processes save and leave. Ends
# with 75 where the run wants to go on. FACETCLIP_CONFIG: a file of accelerate_configs/, where not ddp or multi_node.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
PATH=$root/.venv/bin:$PATH
asked=
trap 'asked=1' TERM HUP INT
fail() {
    echo "launch/node.sh: $1" >&2
    exit 2
}

script=train.py
if [[ ${1:-} == doctor ]]; then
    script=doctor.py
    shift
elif [[ ! -f ${1:-} ]]; then
    fail "expected RUN.toml [section.key=value ...] or doctor, found '${1:-}'"
fi
machines=${PET_NNODES:-1} rank=${PET_NODE_RANK:-0} each=${PET_NPROC_PER_NODE:-}
[[ $each =~ ^[1-9][0-9]*$ ]] || fail "PET_NPROC_PER_NODE: expected the processes of a machine, found '$each'"
[[ $machines =~ ^[1-9][0-9]*$ ]] || fail "PET_NNODES: expected a number of machines, found '$machines'"
config=ddp.yaml
[[ $machines -eq 1 ]] || config=multi_node.yaml
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > each ? cores / each : 1))}

folder=
if [[ $script == train.py ]]; then
    folder=$(python "$root/launch/run_folder.py" "$@") || exit
    [[ $rank -ne 0 ]] || rm -f "$folder/requeue"
fi

# The launcher would kill what trains half a minute after a SIGTERM of its own, so it gets none and ignores SIGUSR1.
(
    trap '' USR1
    exec accelerate launch --config_file "$root/accelerate_configs/${FACETCLIP_CONFIG:-$config}" \
        --num_machines "$machines" --num_processes $((machines * each)) --machine_rank "$rank" \
        --main_process_ip "${PET_MASTER_ADDR:-127.0.0.1}" --main_process_port "${PET_MASTER_PORT:-29500}" \
        "$root/training/$script" "$@"
) &
launcher=$!
grace=${FACETCLIP_GRACE:-60} waited=0 early=
grace=$((${grace%%.*} + 30))
while kill -0 "$launcher" 2>/dev/null; do
    if [[ -n $asked ]]; then
        children=()
        read -ra children 2>/dev/null <"/proc/$launcher/task/$launcher/children" || true
        if [[ $waited -gt $((grace + 60)) ]]; then
            kill -KILL "$launcher" "${children[@]}" 2>/dev/null || true
        elif [[ $script == train.py && ${#children[@]} -gt 0 && $waited -le $grace && -z $early ]]; then
            kill -USR1 "${children[@]}" 2>/dev/null || true # again and again: it may not listen yet
        elif [[ -z $early ]]; then # nothing trains, or what does is stuck
            kill -TERM "$launcher" 2>/dev/null || true
            early=1
        fi
        waited=$((waited + 1))
    fi
    sleep 1 || true # a signal to all of them ends it, too
done
wait "$launcher" && code=0 || code=$?

# Launchers end with codes of their own; that the run wants to go on is said by a file, by the first process of all.
[[ $code -ne 0 && $script == train.py ]] || exit "$code"
[[ -z $early ]] || exit 75
for _ in 1 2 3 4 5; do
    [[ ! -f $folder/requeue ]] || exit 75
    sleep 1 || true
done
exit "$code"
