#!/usr/bin/env bash
# What srun starts once on every node: this node's environment, then torchrun, then watch over it. Arguments: megaladder's.
set -uo pipefail
ranks=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
[ "$ranks" -gt 0 ] 2>/dev/null || ranks=1

# --- this node's environment. What you export before sbatch wins.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_ON_NODE:-1} + ranks - 1) / ranks))}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}                       # says why a collective failed; INFO also says which network it chose
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}   # a rank whose peer died ends instead of waiting
# torch's own cuDNN before the system's: two of them in one process fail with undefined symbols.
cudnn=$("${PYTHON:-python3}" -c 'import nvidia.cudnn as c; print(list(c.__path__)[0])' 2>/dev/null || true)
[ -z "$cudnn" ] || export CUDNN_HOME=$cudnn LD_LIBRARY_PATH=$cudnn/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# Several network interfaces and a hang at the start? Name the right one: NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 sbatch …
# Compiler caches on the node's own disk: a home folder on NFS that 64 ranks write at once is slow and sometimes wrong.
local_disk=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/megaladder-$(id -u)
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$local_disk/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$local_disk/inductor}
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$local_disk/vllm}

# A run.yaml names the ranks of one node (parallel.ranks); here there are as many as the allocation has.
case "$1 $*" in
  sft\ *--parallel.ranks*|grpo\ *--parallel.ranks*) ;;
  sft\ *|grpo\ *) set -- "$@" --parallel.ranks "$((SLURM_NNODES * ranks))" ;;
esac

# --- torchrun. Slurm may send SIGTERM more than once (from srun and from slurmstepd), and a second one makes torchrun drop the ranks that
# are saving (seen; torch 2.13). So torchrun is deaf to SIGTERM and SIGUSR1, and the ranks are told below, by their own parent's number.
# shutdown-timeout: once a rank has ended, the others may take that long. When ranks agree to stop they save together before the first of
# them ends; what is left after that closes an engine, or hangs.
(
  trap '' TERM USR1
  exec "${PYTHON:-python3}" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$ranks" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    --signals-to-handle SIGINT,SIGHUP,SIGQUIT --shutdown-timeout "${SHUTDOWN_TIMEOUT_S:-60}" \
    -m megaladder "$@"
) &
torchrun=$! asked=
trap 'asked=1' TERM USR1

# A rank notes the signal, finishes its step, saves and exits with 3. Said again and again: one that is still importing torch hears nothing.
while kill -0 "$torchrun" 2>/dev/null; do
  [ -z "$asked" ] || pkill -USR1 -P "$torchrun"
  sleep 1 & wait $!
done
wait "$torchrun"
