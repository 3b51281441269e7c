// containerd's own suite for snapshotters, against kapsule-snapshotter through
// the client that containerd uses for proxy plugins. See run.
package conformance

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestSnapshotter(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "Kapsule", start)
}

// start runs a program of its own for one test; neither containerd nor a
// keyprovider is there for it.
func start(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	folder := filepath.Join(filepath.Dir(root), "run")
	address := filepath.Join(folder, "s.sock")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, nil, err
	}
	bin := os.Getenv("KAPSULE_BIN")
	var log bytes.Buffer
	server := exec.Command(filepath.Join(bin, "kapsule-snapshotter"), "--root", root,
		"--address", address, "--containerd-address", filepath.Join(folder, "none.sock"),
		"--content-root", filepath.Join(folder, "none"),
		"--keyprovider", filepath.Join(folder, "none-keys.sock"),
		"--fuse-program", filepath.Join(bin, "kapsule-fuse"), "--fuse-user", "61001",
		"--fetch-user", "61003", "--fetch-cache", filepath.Join(folder, "fetched"))
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	fail := func(err error) error {
		server.Process.Kill()
		server.Wait()
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	if err := awaitSocket(address); err != nil {
		return nil, nil, fail(err)
	}
	conn, err := grpc.Dial("unix://"+address, grpc.WithInsecure())
	if err != nil {
		return nil, nil, fail(err)
	}
	cleanup := func() error {
		conn.Close()
		server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		if _, err := os.Stat(address); !os.IsNotExist(err) {
			return fmt.Errorf("the socket is left")
		}
		return nil
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "kapsule"), cleanup, nil
}

func awaitSocket(address string) error {
	var err error
	for i := 0; i < 2400; i++ {
		var conn net.Conn
		if conn, err = net.Dial("unix", address); err == nil {
			return conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}
