# Helpers that every module's CMakeLists.txt is written with.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)

option(KAPSULE_FUZZ "Build libFuzzer targets (clang) instead of corpus replays" OFF)
set(KAPSULE_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize=")

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(kapsule_flags INTERFACE)
target_include_directories(kapsule_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/proto)
target_compile_options(kapsule_flags INTERFACE -Wall -Wextra -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlaps in std::string's own code (GCC bug 105651).
  target_compile_options(kapsule_flags INTERFACE $<$<CONFIG:Release>:-Wno-restrict>)
endif()
target_compile_definitions(kapsule_flags INTERFACE
  KAPSULE_VERSION="${PROJECT_VERSION}" $<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
if(KAPSULE_SANITIZE)
  add_compile_options(-fsanitize=${KAPSULE_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${KAPSULE_SANITIZE})
endif()
if(KAPSULE_SANITIZE STREQUAL thread)
  add_library(kapsule_tsan OBJECT ${PROJECT_SOURCE_DIR}/cmake/tsan_absl_mutex.cc)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS cmake/tsan_absl_mutex.cc)
  file(STRINGS ${PROJECT_SOURCE_DIR}/cmake/tsan_absl_mutex.cc wrapped REGEX "\"__wrap_")
  foreach(line ${wrapped})
    string(REGEX REPLACE ".*\"__wrap_([^\"]*)\".*" "\\1" symbol "${line}")
    add_link_options(-Wl,--wrap=${symbol})
  endforeach()
  link_libraries($<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:$<TARGET_OBJECTS:kapsule_tsan>>)
endif()
if(KAPSULE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# kapsule_library(NAME SOURCES … [TESTS …] [FUZZ …] [DEPS …] [TEST_DEPS …])
#
# Makes the static library kapsule::NAME. All TESTS go into one program,
# NAME_test. Each x_fuzz.cc of FUZZ becomes x_fuzz: a libFuzzer program in the
# fuzz preset, otherwise a test that replays corpus/x/*.
function(kapsule_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;TESTS;FUZZ;DEPS;TEST_DEPS" ${ARGN})
  add_library(kapsule_${name} STATIC ${arg_SOURCES})
  add_library(kapsule::${name} ALIAS kapsule_${name})
  target_link_libraries(kapsule_${name} PUBLIC kapsule_flags ${arg_DEPS})
  if(arg_TESTS)
    kapsule_test(${name}_test SOURCES ${arg_TESTS} DEPS kapsule::${name} ${arg_TEST_DEPS})
  endif()
  foreach(source ${arg_FUZZ})
    kapsule_fuzz(${source} DEPS kapsule::${name} ${arg_TEST_DEPS})
  endforeach()
endfunction()

# kapsule_program(NAME SOURCES … [DEPS …]): a program in build/…/bin. It loads no
# library that it does not use: each costs memory in every process.
function(kapsule_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE kapsule_flags ${arg_DEPS})
  target_link_options(${name} PRIVATE -Wl,--as-needed)
endfunction()

# kapsule_test(NAME SOURCES … [DEPS …]): a GoogleTest program. Tests find their
# data under TEST_SOURCE_DIR, the folder of the CMakeLists.txt.
function(kapsule_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE kapsule_flags ${arg_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    TEST_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}" PROJECT_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 1200)
endfunction()

function(kapsule_fuzz source)
  cmake_parse_arguments(arg "" "" "DEPS" ${ARGN})
  get_filename_component(name ${source} NAME_WE)
  string(REGEX REPLACE "_fuzz$" "" corpus ${name})
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE kapsule_flags ${arg_DEPS})
  if(KAPSULE_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/core/base/fuzz_replay.cc)
    add_test(NAME ${name} COMMAND ${name} ${CMAKE_CURRENT_SOURCE_DIR}/corpus/${corpus})
    set_tests_properties(${name} PROPERTIES TIMEOUT 1200)
  endif()
endfunction()

# kapsule_proto(NAME PROTOS … [ROOT folder] [GRPC] [REFLECTION] [DEPS …]): the C++ of
# .proto files, named from ROOT, which is the folder proto/ unless given. Without GRPC
# the library links protobuf alone. It is protobuf's lite runtime, which takes some 2 MiB
# less in each process; with REFLECTION the whole one, in a folder of its own,
# which the user includes: a program must not have both.
function(kapsule_proto name)
  cmake_parse_arguments(arg "GRPC;REFLECTION" "ROOT" "PROTOS;DEPS" ${ARGN})
  set(root ${PROJECT_SOURCE_DIR}/proto)
  if(arg_ROOT)
    set(root ${arg_ROOT})
  endif()
  set(folder ${PROJECT_BINARY_DIR}/proto)
  set(cpp_out --cpp_out=lite:${folder})
  set(runtime protobuf::libprotobuf-lite)
  if(arg_REFLECTION)
    string(APPEND folder _reflection)
    set(cpp_out --cpp_out=${folder})
    set(runtime protobuf::libprotobuf)
    file(MAKE_DIRECTORY ${folder})
  endif()
  set(sources)
  foreach(proto ${arg_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" base ${proto})
    set(outputs ${folder}/${base}.pb.cc ${folder}/${base}.pb.h)
    set(plugin)
    if(arg_GRPC)
      list(APPEND outputs ${folder}/${base}.grpc.pb.cc ${folder}/${base}.grpc.pb.h)
      set(plugin --grpc_out=${folder} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(OUTPUT ${outputs}
      COMMAND protobuf::protoc -I${root} ${cpp_out} ${plugin} ${proto}
      DEPENDS ${root}/${proto} VERBATIM)
    list(APPEND sources ${outputs})
  endforeach()
  add_library(kapsule_${name} STATIC ${sources})
  add_library(kapsule::${name} ALIAS kapsule_${name})
  if(arg_REFLECTION)
    target_include_directories(kapsule_${name} PRIVATE ${folder})
  else()
    target_include_directories(kapsule_${name} SYSTEM PUBLIC ${folder})
  endif()
  target_link_libraries(kapsule_${name} PUBLIC ${runtime} ${arg_DEPS})
  if(arg_GRPC)
    target_link_libraries(kapsule_${name} PUBLIC PkgConfig::GRPCPP)
  endif()
endfunction()
