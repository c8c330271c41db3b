# Sourced by the *.sbatch files beside it, in the batch shell on the job's first node. Three things happen here and nowhere else:
#
#   1. where everybody meets      the first node's address and a port of this job's own (static rendezvous: node i of the job is node rank i)
#   2. how a run is told to stop  Slurm's warning before the time limit → srun → torchrun → every rank: the step ends, is saved, status 3
#   3. whether it goes on         status 3 and a new checkpoint → scontrol requeue; the same command then resumes by itself
#
# Read from your environment (sbatch hands it on):
#   MEGALADDER_ROOT   the checkout, where you do not submit from it          MEGALADDER_VENV  virtual environment, default $MEGALADDER_ROOT/.venv
#   NPROC_PER_NODE    ranks a node; default: the node's GPUs, 1 without any  MASTER_ADDR, MASTER_PORT  where the defaults do not suit
set -uo pipefail
ROOT=${MEGALADDER_ROOT:-$SLURM_SUBMIT_DIR}
VENV=${MEGALADDER_VENV:-$ROOT/.venv}
if [ -d "$VENV/bin" ]; then export PATH="$VENV/bin:$PATH"; fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 USE_HUB_KERNELS=NO
export PYTHON=${PYTHON:-python3}
# Since Slurm 22.05 srun no longer takes this over from sbatch: without it torchrun and all its ranks would share one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

say() { echo "[slurm $(date '+%F %T')] $*"; }

fail() { echo "slurm: $*" >&2; exit 2; }

# What Slurm itself connects to: works where node names do not resolve. scontrol knows it, the name is the fallback.
first_address() {
  local first; first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  scontrol show node "$first" 2>/dev/null | grep -oP 'NodeAddr=\K\S+' || echo "$first"
}

# Newest committed checkpoint of a run folder, 0 for none. A folder without the marker is an unfinished save and does not count.
newest_step() { ls -d "$1"/checkpoints/step_*/COMMITTED 2>/dev/null | sed -E 's|.*/step_([0-9]+)/.*|\1|' | sort -n | tail -n 1 | grep . || echo 0; }

# Says how the run itself saw its end (docs/operators.md, "How a run ended").
last_word() { [ ! -f "$1/last_word.json" ] || say "last word: $("$PYTHON" -m megaladder.process.last_word "$1")"; }

# Runs an srun in the background, so that bash can act on signals meanwhile. Leaves `code` and `why` (time, term or nothing).
watch_over() {
  local interrupted
  code=0 why=
  set -m                                       # a process group of its own: a signal for this shell does not hit srun by accident
  "$@" & local step=$!
  trap 'interrupted=1; why=${why:-time}; say "time limit ahead: asking the ranks to save and stop"; kill -USR1 $step' USR1
  trap 'interrupted=1; why=term; say "SIGTERM (pre-empted or cancelled): Slurm has told the ranks as well, waiting for them"' TERM
  while :; do
    interrupted=0
    wait "$step"; code=$?
    [ "$interrupted" = 1 ] || break
  done
  trap - USR1 TERM
}

# A training verb: one torchrun a node. Arguments: verb, run.yaml, overrides.
train() {
  local verb=$1 config=${2:-}
  [ -f "$config" ] || fail "no run.yaml '$config'; fix: sbatch examples/slurm/$verb.sbatch CONFIG.yaml [--a.b value …], from the checkout (or set MEGALADDER_ROOT)"
  # Resolved once before any rank starts: a typo costs a second, not an allocation of 64 GPUs in a restart loop.
  local resolved; resolved=$("$PYTHON" -m megaladder "$verb" "${@:2}" --print-config) || exit 2
  local run_dir; run_dir=$(sed -n "s/^run_dir: ['\"]\{0,1\}\([^'\"]*\)['\"]\{0,1\}$/\1/p" <<<"$resolved")
  export MASTER_ADDR=${MASTER_ADDR:-$(first_address)}
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}   # two jobs that share a node must not meet
  mkdir -p "$run_dir"
  # torchrun answers every failure with 1. The first rank to fail leaves its own status here, on the shared file system.
  export MEGALADDER_STATUS_FILE=$PWD/$run_dir/.status.$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  case $run_dir in /*) MEGALADDER_STATUS_FILE=$run_dir/.status.$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} ;; esac
  rm -f "$MEGALADDER_STATUS_FILE"
  local before; before=$(newest_step "$run_dir")
  say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)), $run_dir is at step $before: megaladder $*"
  # --wait: the nodes finish within moments of each other; what is left two minutes after the first one hangs.
  watch_over srun --kill-on-bad-exit=0 --wait="${SRUN_WAIT_S:-120}" bash "$ROOT/examples/slurm/node.sh" "$@"
  local status; status=$(cat "$MEGALADDER_STATUS_FILE" 2>/dev/null || echo "$code")
  # No rank left a status and yet it failed: one was killed (out of memory, a lost node) before it could. That is 3: the run can go on.
  if [ ! -e "$MEGALADDER_STATUS_FILE" ] && [ "$code" != 0 ]; then status=3; fi
  rm -f "$MEGALADDER_STATUS_FILE"
  last_word "$run_dir"
  settle "$status" "$before" "$(newest_step "$run_dir")"
}

# A verb of one process whose results are files that the next start continues (eval, convert). Arguments: the verb's own.
single() {
  say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): megaladder $*"
  watch_over srun --nodes=1 --ntasks=1 "$PYTHON" -m megaladder "$@"
  [ "$why" = time ] && settle 3 0 1
  settle "$code" 0 0
}

# The end of an attempt: requeue, or end with the run's status. Arguments: status, newest checkpoint before and after.
# Only progress is requeued: a run that stops itself at the same place again (non-finite loss, a step longer than the time limit) would
# otherwise go round for ever.
settle() {
  local status=$1 before=$2 after=$3
  if [ "$status" = 0 ]; then
    say "done"
  elif [ "$status" = 2 ]; then
    say "ended with status 2, the input or the configuration is wrong; not requeued"
  elif [ "$status" != 3 ] && [ "$why" != time ]; then
    say "ended with status $status, a bug; not requeued"
  elif [ "$why" = term ]; then
    say "stopped with status $status at step $after; a pre-empted job is requeued by Slurm itself"
  elif [ "$after" -gt "$before" ]; then
    say "stopped with status $status after step $after (this attempt began at $before): requeueing"
    scontrol requeue "$SLURM_JOB_ID"
  else
    say "stopped with status $status and no new checkpoint in this attempt (step $after): not requeued; see the message above"
  fi
  exit "$status"
}
