# shellcheck shell=bash
# shellcheck disable=SC2034  # $words is for the stand-ins.
# Sourced by the stand-ins: what they note, the plan that they play, and strict flags.
#
# $STANDINS/calls has a line for every call. $STANDINS/plan has what a test wants: a file a subject,
# a word a line, for the first, second, ... time; the last is repeated.
#
# Stand-ins are in bash because a launch makes dozens of calls and Python starts ten times slower.

record() { # FILE WORD ...
  local line
  printf -v line '%q ' "${@:2}"
  echo "$line" >>"$STANDINS/$1"
}

refuse() {
  echo "$0: $*" | tee -a "$STANDINS/refused" >&2
  exit 2
}

next() { # COUNTER: how often it was asked for before
  local before
  mkdir -p "$(dirname "$STANDINS/$1")"
  printf x >>"$STANDINS/$1"
  before=$(<"$STANDINS/$1")
  echo $((${#before} - 1))
}

word() { # FILE NUMBER DEFAULT
  local -a words
  if [[ ! -f $1 ]]; then
    echo "$3"
    return
  fi
  mapfile -t words <"$1"
  echo "${words[$2 < ${#words[@]} ? $2 : -1]}"
}

# Prints what the plan has for this call of a step: an exit code, a word, or nothing. Not repeated.
planned_failure() { # STEP
  local -a codes
  [[ -f $STANDINS/plan/fail/$1 ]] || return 0
  mapfile -t codes <"$STANDINS/plan/fail/$1"
  echo "${codes[$(next "failed/$1")]:-}"
}

# read_flags NUMBER FLAG[=PATTERN] ... :: ARGUMENTS
# splits ARGUMENTS into ${words[@]}, NUMBER of them, and ${given[FLAG]}, whose values match PATTERN.
declare -A given=()
words=()
read_flags() {
  local -A patterns=()
  local number="$1" name
  shift
  while [[ $1 != :: ]]; do
    patterns["${1%%=*}"]="${1#"${1%%=*}"}"
    shift
  done
  shift
  while [[ $# -gt 0 ]]; do
    name="${1%%=*}"
    if [[ $1 != --* ]]; then
      words+=("$1")
    elif [[ ! -v patterns[$name] ]]; then
      refuse "unrecognized argument: $1"
    elif [[ -z ${patterns[$name]} ]]; then
      [[ $1 == "$name" ]] || refuse "$name takes no value"
      given[$name]=yes
    else
      if [[ $1 == "$name" ]]; then
        [[ $# -gt 1 ]] || refuse "$name expects a value"
        set -- "$1=$2" "${@:3}"
      fi
      [[ ${1#*=} =~ ^(${patterns[$name]#=})$ ]] || refuse "$name: invalid value '${1#*=}'"
      given[$name]="${1#*=}"
    fi
    shift
  done
  [[ ${#words[@]} -eq $number ]] || refuse "expected $number positional arguments: ${words[*]}"
}

require() {
  local name
  for name in "$@"; do
    [[ -v given[$name] ]] || refuse "$name must be specified"
  done
}
