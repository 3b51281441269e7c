kapsule_library(data_plane
  SOURCES control_channel.cc daemon_process.cc daemon_process_activity.cc data_plane.cc
          fuse_connection.cc fuse_life.cc fuse_life_watch.cc fuse_mount.cc fuse_supervisor.cc
          fuse_supervisor_calls.cc fuse_supervisor_watch.cc
  TESTS control_channel_test.cc daemon_process_test.cc data_plane_test.cc data_plane_failover_test.cc
        data_plane_failure_test.cc data_plane_remote_test.cc data_plane_stuck_test.cc
        data_plane_test_node.cc fuse_life_watch_test.cc
  DEPS kapsule::base kapsule::oci kapsule::control_wire kapsule::fetch_control kapsule::holder_wire
       kapsule::keyprovider_wire kapsule::mounts
  TEST_DEPS kapsule::blob_testing kapsule::fetch_wire)
kapsule_test(limits_test SOURCES limits_test.cc data_plane_test_node.cc
  DEPS kapsule::data_plane kapsule::blob_testing)
kapsule_test(damage_test SOURCES damage_test.cc data_plane_test_node.cc faulty_file.cc
  DEPS kapsule::data_plane kapsule::blob_testing)
kapsule_test(confinement_test SOURCES data_plane_confinement_test.cc data_plane_test_node.cc
  DEPS kapsule::data_plane kapsule::blob_testing kapsule::crypt_testing)
