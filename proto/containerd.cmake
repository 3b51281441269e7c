kapsule_proto(proto_containerd GRPC PROTOS
  containerd/types/descriptor.proto
  containerd/types/mount.proto
  containerd/services/containers/v1/containers.proto
  containerd/services/content/v1/content.proto
  containerd/services/diff/v1/diff.proto
  containerd/services/images/v1/images.proto
  containerd/services/leases/v1/leases.proto
  containerd/services/namespaces/v1/namespace.proto
  containerd/services/snapshots/v1/snapshots.proto
  containerd/services/version/v1/version.proto
  DEPS kapsule::proto_wellknown)
