# What bash does in the launch scripts of this folder, which source it: starts the script once more as Python, on several nodes under torchrun.
export USE_HUB_KERNELS=NO
if [ "${NNODES:-1}" -gt 1 ]; then
  exec torchrun --nnodes "$NNODES" --node-rank "${NODE_RANK:?on which node is this}" --nproc-per-node "${NPROC_PER_NODE:-8}" \
    --master-addr "${MASTER_ADDR:?host of node 0}" --master-port "${MASTER_PORT:-29500}" "$0" "$@"
fi
exec "${PYTHON:-python3}" "$0" "$@"
