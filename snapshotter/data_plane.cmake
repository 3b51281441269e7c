kapsule_library(data_plane
  SOURCES control_channel.cc data_plane.cc fuse_mount.cc fuse_process.cc
  TESTS control_channel_test.cc data_plane_test.cc data_plane_failure_test.cc data_plane_test_node.cc
  DEPS kapsule::base kapsule::oci kapsule::control_wire kapsule::keyprovider_wire
  TEST_DEPS kapsule::blob_testing)
