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
    folder=$(python "$root/launch/run_folder.py" "$@") || exit 2
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
trap : TERM HUP INT
code=0
wait "$launcher" || code=$?
if kill -0 "$launcher" 2>/dev/null; then  # a signal has ended the waiting, not the launcher
    while kill -0 "$launcher" 2>/dev/null; do # what trains may not be there yet, or not listen
        for child in $(cat "/proc/$launcher/task/$launcher/children" 2>/dev/null); do
            kill -USR1 "$child" 2>/dev/null || true
        done
        sleep 1
    done
    wait "$launcher" && code=0 || code=$?
fi

# Launchers end with codes of their own; that the run wants to go on is said by a file, by the first process of all.
for _ in 1 2 3 4 5; do
    [[ $code -ne 0 ]] || exit 0
    [[ ! -f $folder/requeue ]] || exit 75
    sleep 1
done
exit "$code"
