# shellcheck shell=bash
# Sourced by the launch scripts: the output of many workers, from one stream into a file each.
#
#   collect_lines FOLDER      reads lines WORKER:NUMBER:TEXT, writes FOLDER/WORKER.log
#   count_lines               turns the lines of `kubectl logs --prefix` into such lines
#   first_failure FOLDER      prints WORKER STATUS of the worker whose failure explains the others'
#
# A stream that broke may be read again from its beginning: lines are numbered from 1, and those that
# a file has are left out. WORKER:0: makes a file without lines. WORKER:exit:STATUS goes to
# FOLDER/exits. $shown says whose lines are shown.

shown="" # a pattern of worker names

collect_lines() {
  local line worker number text
  local -A have=()
  while IFS= read -r line; do
    [[ $line =~ ^([^:]+):([0-9]+|exit):(.*)$ ]] || continue
    worker="${BASH_REMATCH[1]}" number="${BASH_REMATCH[2]}" text="${BASH_REMATCH[3]}"
    if [[ $number == exit ]]; then
      echo "$worker $text" >>"$1/exits"
      continue
    fi
    [[ -v have[$worker] ]] || have[$worker]="$(number_of_lines "$1/$worker.log")"
    [[ $number != 0 ]] || : >>"$1/$worker.log"
    ((number > have[$worker])) || continue
    have[$worker]="$number"
    echo "$text" >>"$1/$worker.log"
    # shellcheck disable=SC2053
    [[ $worker != $shown ]] || echo "${name:-$worker}: $text"
  done
}

number_of_lines() {
  if [[ -f $1 ]]; then wc -l <"$1"; else echo 0; fi
}

count_lines() {
  local line pod text
  local -A count=()
  while IFS= read -r line; do
    [[ $line =~ ^\[pod/([^/]+)/[^]]+\]\ (.*)$ ]] || continue
    pod="${BASH_REMATCH[1]}" text="${BASH_REMATCH[2]}"
    count[$pod]=$((${count[$pod]:-0} + 1))
    echo "$pod:${count[$pod]}:$text"
    # What xpk's wrapper prints last.
    [[ $text != EXIT_CODE=* ]] || echo "$pod:exit:${text#*=}"
  done
}

first_failure() {
  [[ -f $1/exits ]] || return 0
  # An error of the training's own first (below 128); then a crash, which is also how workers end
  # whose neighbour is gone; last SIGTERM (143).
  awk '$2 > 0 {rank = $2 < 128 ? 1 : $2 != 143 ? 2 : 3; if (!(rank in first)) first[rank] = $0}
    END {for (rank = 1; rank <= 3; rank++) if (rank in first) {print first[rank]; exit}}' "$1/exits"
}

show_last_lines() { # FOLDER WORKER
  [[ -f $1/$2.log ]] || return 0
  note "the last lines of $1/$2.log:"
  tail -n 20 "$1/$2.log" >&2
}
