# Runs examples (FOLDER/<name>) and reads the figures they write: a row that failed is a row, and
# --method reaches validation, too.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})

function(run name out)  # arguments; sets json
  execute_process(COMMAND ${FOLDER}/${name} ${ARGN} --out ${WORK}/${out} --json ${WORK}/new/${out}.json
                  RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE error)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${name} ${ARGN}: exit code ${code}\n${output}\n${error}")
  endif()
  file(READ ${WORK}/new/${out}.json json)
  set(json "${json}" PARENT_SCOPE)
endfunction()

# One step overflows f16 under a fixed scale: nan for its gradients, numbers for all the others.
run(adjoint_scaling adjoint --steps 1)
foreach(key IN ITEMS precision scaling seed iterations)  # no flags of this example
  string(JSON type TYPE "${json}" ${key})
  if(NOT type STREQUAL "NULL")
    message(FATAL_ERROR "adjoint_scaling reports ${key}: ${type}, need null")
  endif()
endforeach()
string(JSON rows LENGTH "${json}" rows)
if(NOT rows EQUAL 12)
  message(FATAL_ERROR "adjoint_scaling: ${rows} rows, need 12")
endif()
foreach(r RANGE 11)
  string(JSON row GET "${json}" rows ${r})
  foreach(key IN ITEMS precision scaling error_y error_dy0)
    string(JSON ${key} GET "${row}" ${key})
  endforeach()
  if(NOT error_y MATCHES "^[0-9]" OR
     (precision STREQUAL "f16" AND scaling STREQUAL "fixed 2^20" AND NOT error_dy0 STREQUAL "nan") OR
     (NOT precision STREQUAL "f16" AND NOT error_dy0 MATCHES "^[0-9]"))
    message(FATAL_ERROR "adjoint_scaling: ${row}")
  endif()
endforeach()

# The same weights, another method: the loss before training is another one.
foreach(name cnf otflow)
  foreach(method rk4 euler)
    run(${name} ${name}_${method} --quick --iterations 1 --method ${method} --threads 1)
    string(JSON ${method} GET "${json}" loss_first)
    string(JSON total GET "${json}" seconds_backward)
    string(JSON mean GET "${json}" seconds_backward_per_iteration)
    if(NOT total STREQUAL mean)  # of one iteration
      message(FATAL_ERROR "${name}: ${total} s in total, ${mean} s per iteration of one")
    endif()
  endforeach()
  message(STATUS "${name}: first loss ${rk4} by rk4, ${euler} by euler")
  if(rk4 STREQUAL euler)
    message(FATAL_ERROR "${name}: --method does not reach the validation")
  endif()
endforeach()
