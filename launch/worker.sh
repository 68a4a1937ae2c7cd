#!/usr/bin/env bash
# What tpu_pod.sh runs on every worker of a slice:
#
#   bash launch/worker.sh install              makes .venv and installs into it
#   bash launch/worker.sh run COMMAND FLAGS    starts `imagen-video COMMAND FLAGS` and follows it
#   bash launch/worker.sh stop                 ends it, by which a training saves a checkpoint, and
#                                              follows that
#
# The command does not hang on the connection that started it. "run" a second time, which is what
# gcloud does after a broken connection, follows the one that runs. To follow is to print its output
# from the beginning as WORKER:LINE:TEXT, at its end WORKER:exit:STATUS, and to exit with STATUS. "run"
# first prints WORKER:0:, so that one that dies before it has said anything is known to be missing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/environment.sh"
source "$here/commands.sh"
cd "$ROOT"
RUN="runs/command"

install() {
  if ! (find_python) >/dev/null 2>&1; then
    # The images with Ubuntu 22.04 have Python 3.10; uv brings one without asking for root.
    python3 -m pip install --quiet --user uv
    local uv="$HOME/.local/bin/uv"
    "$uv" python install 3.12
    PATH="$(dirname "$("$uv" python find 3.12)"):$PATH"
  fi
  install_into_venv "[tpu,train]"
}

run() {
  local worker
  worker="worker_$(worker_number)"
  echo "$worker:0:"
  mkdir -p "$(dirname "$RUN")"
  if mkdir "$RUN" 2>/dev/null; then
    : >"$RUN/log"
    setsid bash "$ROOT/launch/worker.sh" attend "$@" >/dev/null 2>&1 </dev/null &
  fi
  follow
}

attend() {
  echo "$$" >"$RUN/attendant"
  # When the machine goes down all processes get SIGTERM; this one has an exit status to write.
  trap : TERM
  "$VENV/bin/imagen-video" "$@" >>"$RUN/log" 2>&1 &
  echo "$!" >"$RUN/process"
  local status=0
  outlast "$!" || status=$?
  echo "$status" >"$RUN/exit"
}

stop() {
  [[ -d $RUN ]] || return 0
  await process
  kill -TERM "$(<"$RUN/process")" 2>/dev/null || true
  follow
}

follow() {
  local worker status
  worker="worker_$(worker_number)"
  await attendant
  tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(<"$RUN/attendant")" "$RUN/log" |
    grep --line-buffered --line-number '' | sed --unbuffered "s/^/$worker:/" || true
  # It runs on, so only this stream broke: 255 is what ssh says then.
  ! kill -0 "$(<"$RUN/attendant")" 2>/dev/null || exit 255
  # Without a status it was killed together with its attendant: the machine has been restarted.
  status="$(cat "$RUN/exit" 2>/dev/null || echo 143)"
  echo "$worker:exit:$status"
  exit "$status"
}

await() { # A file of the run; the machine's disk may be taken away first.
  until [[ -s $RUN/$1 ]]; do
    [[ -d $RUN ]] || exit 255
    sleep 0.1
  done
}

worker_number() {
  curl --silent --fail --header "Metadata-Flavor: Google" \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

case "${1:-}" in
  install | run | attend | stop) "$@" ;;
  *) fail "worker.sh has no '${1:-}'" ;;
esac
