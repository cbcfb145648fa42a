#!/bin/sh
# Run a command, such as pytest, as CPUs with narrower vectors would run it: torch's and oneDNN's
# kernels for each, every time in the foreground and as a background job, which inherits SIGINT as
# ignored. A line for each run at the end; the exit status is 1 if one of them failed.
#   sh scripts/test_portable.sh COMMAND [ARGUMENT ...]

foreground=
env --default-signal=INT true 2>/dev/null && foreground=--default-signal=INT # also where make is a job
job=
trap 'test -n "$job" && kill "$job"; exit 130' INT TERM

summary=
failed=0
for variant in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 unset; do
  for place in foreground background; do
    printf '\n%s, in the %s\n' "$variant" "$place"
    start=$(date +%s)
    setting=
    test "$variant" = unset || setting=$variant
    if test "$place" = foreground; then
      env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA $foreground $setting "$@"
    else
      env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA $setting "$@" &
      job=$!
      wait "$job"
    fi
    status=$?
    job=
    result=passed
    test "$status" -eq 0 || { result="FAILED ($status)"; failed=1; }
    seconds=$(($(date +%s) - start))
    summary="$summary$(printf '%-12s %-28s %-11s %5d s' "$result" "$variant" "$place" "$seconds")
"
  done
done
printf '\n%s' "$summary"
exit "$failed"
