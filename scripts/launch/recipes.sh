# shellcheck shell=bash disable=SC2034,SC2154
# Recipes of a family, and what a script has to know of one besides its name. Sourced by scripts/launch.sh.

# Sets recipe_file: a name in the family's configs/, or a file.
find_recipe() {
  [ -n "$recipe" ] || fail "$kind needs --recipe"
  case $recipe in
    *.yaml) recipe_file=$recipe ;;
    *) recipe_file=$root/$family/configs/$recipe.yaml ;;
  esac
  [ -f "$recipe_file" ] || fail "no recipe $recipe_file; there are: $(cd "$root/$family/configs" && echo *.yaml)"
}

# One value of the recipe, as in: recipe_value batch_size train. Without a section the key stands in one section only.
# These files keep one key on each line.
recipe_value() {
  local value lines=/./
  [ -z "${2:-}" ] || lines="/^$2:/,/^[^ #]/"
  value=$(sed -n "${lines}s/^ *$1: *\([^ #]*\).*/\1/p" "$recipe_file")
  [ -n "$value" ] || fail "$recipe_file has no ${2:+$2.}$1"
  printf '%s' "$value"
}

# --amp or --noamp for True or False.
precision_flag() {
  case $1 in
    True | true | 1) echo --amp ;;
    False | false | 0) echo --noamp ;;
    *) fail "AMP=$1: expected True or False" ;;
  esac
}
