# shellcheck shell=bash
# Sourced by the launch scripts: reads and checks their options.
#
#   read_options "zone= spot create_flag[]=" "$@"
#
# sets $zone to a value, $spot to yes, and appends to ${create_flag[@]}, for those given. What follows
# a lone -- is left in ${rest[@]}. A mistake is one line on standard error and exit code 2. --help
# prints the comment at the top of the script.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: needs bash 4.4 or newer, and this is $BASH_VERSION" >&2
  exit 1
fi

rest=()

mistake() {
  echo "error: $* (see --help)" >&2
  exit 2
}

print_help() {
  sed -E -n '2,/^[^#]/s/^#( |$)//p' "$0"
}

read_options() {
  local known=" $1 " option value
  shift
  while [[ $# -gt 0 ]]; do
    case "$1" in
      --) rest=("${@:2}") && return ;;
      --help | -h) print_help && exit ;;
      --*) ;;
      *) mistake "unexpected argument '$1'" ;;
    esac
    option="${1#--}" && option="${option%%=*}"
    if [[ ! $option =~ ^[a-z_]+$ ]]; then
      mistake "unknown option '$1'"
    elif [[ $known == *" $option "* ]]; then
      [[ $1 == "--$option" ]] || mistake "--$option takes no value"
      printf -v "$option" yes
      shift
      continue
    elif [[ $known != *" $option= "* && $known != *" ${option}[]= "* ]]; then
      mistake "unknown option '--$option'"
    elif [[ $1 == *=* ]]; then
      value="${1#*=}"
      shift
    elif [[ $# -gt 1 && $2 != --* ]]; then
      value="$2"
      shift 2
    else
      mistake "--$option needs a value"
    fi
    if [[ $known == *" $option= "* ]]; then
      printf -v "$option" '%s' "$value"
    else
      local -n values="$option"
      values+=("$value")
    fi
  done
}

require_options() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || mistake "--$option is missing"
  done
}

check_whole_number() {
  [[ ${!1} =~ ^[0-9]+$ ]] || mistake "--$1 '${!1}' is not a whole number"
}

check_seconds() {
  [[ ${!1} =~ ^[0-9]*\.?[0-9]+$ ]] || mistake "--$1 '${!1}' is not a number of seconds"
}
