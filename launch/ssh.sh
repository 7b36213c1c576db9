#!/usr/bin/env bash
# Train on machines that are reached by ssh without a password and see this folder, the shards and the run folder under
# the same paths:
#   launch/ssh.sh HOST,HOST,... PROCESSES_OF_EACH RUN.toml [section.key=value ...] [--allow FIELD]
# `doctor` in place of RUN.toml asks the launch itself what is wrong with it. What is exported here under the names below
# is known there, too.
# The first host is where the others meet, on port 29500 (FACETCLIP_PORT). Interrupted (SIGINT, SIGTERM, SIGHUP), all save
# and leave, and this ends with 75: the same command goes on. When one machine fails the others are stopped.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
fail() {
    echo "launch/ssh.sh: $1" >&2
    exit 2
}

[[ $# -ge 3 ]] || fail "expected HOST,HOST,... PROCESSES_OF_EACH RUN.toml [section.key=value ...]"
IFS=, read -ra hosts <<<"$1"
[[ $2 =~ ^[1-9][0-9]*$ ]] || fail "expected a number of processes, found '$2'"
[[ -f $3 || $3 == doctor ]] || fail "no run file $3"
each=$2
shift 2
for host in "${hosts[@]}"; do
    [[ $host =~ ^[A-Za-z0-9_@.:-]+$ && $host != -* ]] || fail "expected HOST,HOST,..., found '$host'"
done
address=${hosts[0]##*@}
mark=/tmp/facetclip-$(id -u)-$(hostname)-$$
words=
for name in $(compgen -e | grep -E '^(FACETCLIP|MLFLOW|AWS|HF|NCCL|GLOO)_'); do
    [[ -z ${!name} ]] || words+="export $name=$(printf %q "${!name}"); "
done
words+="export PET_NNODES=${#hosts[@]} PET_NPROC_PER_NODE=$each PET_MASTER_ADDR=$address"
words+=" PET_MASTER_PORT=${FACETCLIP_PORT:-29500}; cd $(printf %q "$PWD"); "

sessions=()
for rank in "${!hosts[@]}"; do
    # By its standard input, where no list of processes shows what is in it.
    ssh -o BatchMode=yes "${hosts[rank]}" bash -s <<<"echo \$\$ >$mark-$rank; export PET_NODE_RANK=$rank; $words
        exec bash $(printf '%q ' "$root/launch/node.sh" "$@") </dev/null" &
    sessions+=($!)
done
stop() {
    for rank in "${!hosts[@]}"; do
        ssh -n -o BatchMode=yes "${hosts[rank]}" "kill -TERM \$(cat $mark-$rank) 2>/dev/null" || true
    done
}
trap stop TERM HUP INT

code=0
for _ in "${sessions[@]}"; do
    ended=0
    wait -n "${sessions[@]}" || ended=$?
    while [[ $ended -gt 128 && -n $(jobs -r) ]]; do # the signal, not a session, has ended the waiting
        ended=0
        wait -n "${sessions[@]}" || ended=$?
    done
    [[ $code -ne 0 || $ended -eq 0 || $ended -eq 127 ]] || {
        code=$ended
        [[ $code -eq 75 ]] || stop
    }
done
wait
for rank in "${!hosts[@]}"; do
    ssh -n -o BatchMode=yes "${hosts[rank]}" "rm -f $mark-$rank" || true
done
exit "$code"
