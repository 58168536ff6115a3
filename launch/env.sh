# shellcheck shell=bash
# Environment for a training process: `source launch/env.sh [tpu|gpu|cpu]`.
#
# Without an argument the device is guessed. Flags of your own in XLA_FLAGS and LIBTPU_INIT_ARGS
# come last and win. Every flag has its reason; a flag without one does not belong here.

unclip_device() {
  if [[ -e /dev/accel0 || -d /dev/vfio ]]; then
    echo tpu
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    echo gpu
  else
    echo cpu
  fi
}

unclip_tpu_flags=(
  # Gradients cross the slow network between slices while the backward pass goes on.
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  # ... also where tensors of different sizes are reduced together, as the layers' gradients are.
  --xla_tpu_data_parallel_opt_different_sized_ops=true
  # Collectives run inside the matrix products next to them instead of between them.
  --xla_tpu_enable_async_collective_fusion=true
  # ... for all-gather too: with fsdp rules it is the most frequent collective.
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  # ... and spread over several products when one is too short to hide it.
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # The tensor core computes while data move between chips.
  --xla_tpu_overlap_compute_collective_tc=true
  # All-gathers are started early and awaited late, which the fusions above build on.
  --xla_enable_async_all_gather=true
)

unclip_gpu_flags=(
  # Collectives are scheduled as early as their inputs are there, so that they hide under compute.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Layers are scanned: fetch the next layer's shards while this one computes.
  --xla_gpu_enable_pipelined_all_gather=true
  # ... and send off the previous layer's gradients.
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  # Fewer, larger messages: NVLink and InfiniBand reach their bandwidth from about 100 MB on.
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)
if [[ "${UNCLIP_DETERMINISTIC:-0}" == 1 ]]; then
  # A resumed run then equals an uninterrupted one bit for bit on GPUs too; slower by a tenth or so.
  unclip_gpu_flags+=(--xla_gpu_deterministic_ops=true)
fi

case "${1:-$(unclip_device)}" in
  tpu)
    export LIBTPU_INIT_ARGS="${unclip_tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  gpu)
    export XLA_FLAGS="${unclip_gpu_flags[*]} ${XLA_FLAGS:-}"
    # JAX takes 75 % of the memory by default; nothing else runs beside a training process.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    # NCCL says which link or node failed; by default it says nothing.
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    # On AWS, NCCL reaches the fast network (EFA) through libfabric, and the GPUs' memory directly.
    if command -v fi_info >/dev/null 2>&1 && fi_info -p efa >/dev/null 2>&1; then
      export FI_PROVIDER="${FI_PROVIDER:-efa}" FI_EFA_USE_DEVICE_RDMA="${FI_EFA_USE_DEVICE_RDMA:-1}"
    fi
    ;;
  cpu)
    # One device per core (a power of two of them, so that batches divide): with small programs the
    # threads of one device wait for each other more than they help.
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    devices=1
    while ((devices < 8 && devices * 2 <= cores)); do devices=$((devices * 2)); done
    export XLA_FLAGS="--xla_force_host_platform_device_count=$devices ${XLA_FLAGS:-}"
    unset cores devices
    # glibc returns large blocks to the system when they are freed, so every step faults in the pages
    # of its buffers anew. Pages of 2 MiB instead of 4 KiB: 1.1 times as many steps (docs/speed.md).
    export GLIBC_TUNABLES="glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"
    ;;
  *)
    echo "launch/env.sh: unknown device '$1'; give tpu, gpu or cpu" >&2
    return 2
    ;;
esac
