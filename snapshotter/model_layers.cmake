kapsule_library(layer_manager
  SOURCES authoriser.cc blob_pins.cc blob_sources.cc image_finder.cc layer_manager.cc layer_manager_open.cc layer_table.cc
          pre_register.cc
  TESTS authoriser_test.cc blob_pins_test.cc image_finder_test.cc
        layer_manager_containerd_test.cc layer_manager_test.cc layer_table_test.cc pre_register_test.cc test_proxy.cc
  DEPS kapsule::base kapsule::oci kapsule::containerd kapsule::mounts absl::synchronization absl::time
  TEST_DEPS kapsule::containerd_testing kapsule::mounts_testing kapsule::snapshotter)

if(TARGET kapsule::data_plane)
  kapsule_library(model_layers
    SOURCES blob_fetcher.cc blob_open_request.cc model_layers.cc open_blobs.cc
    TESTS blob_fetcher_test.cc blob_open_request_test.cc open_blobs_test.cc
    DEPS kapsule::layer_manager kapsule::data_plane kapsule::cri_images)
endif()
