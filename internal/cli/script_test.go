package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"golang.org/x/sys/unix"

	"imprint/api"
	"imprint/internal/guest"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// The scripts in testdata run these programs, which are this test again.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"imprint": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"imprint-agent": func() {
			os.Exit(guest.Command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
		},
		"stock-etcd": func() { etcdmain.Main(os.Args) },
	})
}

// patience is how long something that a script waits for may take.
const patience = 30 * time.Second

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scripts("testdata"))
}

// Machines that only a real QEMU has.
func TestScriptsWithQEMU(t *testing.T) {
	t.Parallel()
	need.Program(t, qemu.Program, "qemu-system-x86")
	testscript.Run(t, scripts("testdata/qemu"))
}

// scripts are those in a directory, with what they need.
func scripts(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// A socket's path may have 107 bytes, so it cannot be below $WORK.
			run, err := os.MkdirTemp("", "i")
			if err != nil {
				return err
			}
			// The agent keeps parameters in memory only.
			guests, err := os.MkdirTemp("/dev/shm", "imprint-cli-test-")
			if err != nil {
				return err
			}
			hypervisor, err := os.MkdirTemp("", "h")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(run); os.RemoveAll(guests); os.RemoveAll(hypervisor) })
			env.Setenv("RUN", run)
			env.Setenv("HYPERVISOR", hypervisor)
			env.Setenv("GUESTS", guests)
			env.Setenv("IMPRINT_SOCKET", run+"/imprint.sock")
			env.Setenv("DATA", env.WorkDir+"/data")
			env.Setenv("HVDATA", env.WorkDir+"/hvdata")
			env.Setenv("PORT", freePort())
			keys, err := filepath.Abs(keyDir)
			if err != nil {
				return err
			}
			env.Setenv("KEYS", keys)
			env.Setenv("ETCD_PORT", freePort())
			env.Values["processes"] = map[string]*exec.Cmd{}
			env.Values["ports"] = map[string]*port{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":        serve,
			"sign":         sign,
			"hypervisor":   hypervisor,
			"etcd":         etcd,
			"halt":         func(ts *testscript.TestScript, _ bool, args []string) { end(ts, args, syscall.SIGTERM) },
			"kill9":        func(ts *testscript.TestScript, _ bool, args []string) { end(ts, args, syscall.SIGKILL) },
			"plug":         plug,
			"hangup":       hangUp,
			"post":         post,
			"put":          put,
			"waitfor":      waitFor,
			"expand":       expand,
			"flip":         flip,
			"code":         code,
			"certificates": certificates,
		},
	}
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// start runs a program in the background under the name that "halt" and "kill9"
// take, and returns once ready says so. Its output goes to NAME.log.
func start(ts *testscript.TestScript, name string, ready func() error, program string, args ...string) {
	log, err := os.OpenFile(ts.MkAbs(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	defer log.Close()
	var path string
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if info, err := os.Stat(filepath.Join(dir, program)); err == nil && !info.IsDir() {
			path = filepath.Join(dir, program)
			break
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "IMPRINT_SOCKET"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	ts.Defer(func() {
		cmd.Process.Kill() // no news if it has ended
		<-ended
	})
	processes(ts)[name] = cmd
	for deadline := time.Now().Add(patience); ; {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-ended:
			ts.Fatalf("%s ended: %s", name, ts.ReadFile(name+".log"))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s is not ready: %v", name, err)
		}
	}
}

func processes(ts *testscript.TestScript) map[string]*exec.Cmd {
	return ts.Value("processes").(map[string]*exec.Cmd)
}

// serve [arg...] starts a server on $DATA and $RUN.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	args = append([]string{"serve", "--name", "host-1", "--data", ts.Getenv("DATA"), "--run", ts.Getenv("RUN"), "--operator", ""}, args...)
	start(ts, "serve", func() error {
		client := api.NewUnix(ts.Getenv("IMPRINT_SOCKET"))
		defer client.Close()
		return client.Ready(context.Background())
	}, "imprint", args...)
}

// hypervisor [arg...] starts "imprint host" on $HVDATA and $HYPERVISOR, for the
// server's check-in endpoint at 127.0.0.1:$PORT.
func hypervisor(ts *testscript.TestScript, neg bool, args []string) {
	args = append([]string{"host", "--data", ts.Getenv("HVDATA"), "--run", ts.Getenv("HYPERVISOR"), "--connect", "127.0.0.1:" + ts.Getenv("PORT")}, args...)
	start(ts, "hypervisor", func() error {
		_, err := os.Stat(filepath.Join(ts.Getenv("HYPERVISOR"), "lock"))
		return err
	}, "imprint", args...)
}

// sign [arg...] starts a signer at $RUN/sign.sock.
func sign(ts *testscript.TestScript, neg bool, args []string) {
	socket := ts.Getenv("RUN") + "/sign.sock"
	start(ts, "sign", func() error {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err
	}, "imprint", append([]string{"sign", "--keys", ts.MkAbs("keys"), "--listen", socket}, args...)...)
}

// etcd starts a stock etcd at 127.0.0.1:$ETCD_PORT.
func etcd(ts *testscript.TestScript, neg bool, _ []string) {
	address := "127.0.0.1:" + ts.Getenv("ETCD_PORT")
	start(ts, "etcd", func() error {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	}, "stock-etcd", "--data-dir", ts.MkAbs("etcd"), "--listen-client-urls", "http://"+address, "--advertise-client-urls", "http://"+address,
		"--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "error", "--unsafe-no-fsync")
}

// end [NAME] sends a background program, by default the server, a signal and
// returns when it has ended.
func end(ts *testscript.TestScript, args []string, s syscall.Signal) {
	name := "serve"
	if len(args) > 0 {
		name = args[0]
	}
	cmd := processes(ts)[name]
	if cmd == nil {
		ts.Fatalf("%s does not run", name)
	}
	delete(processes(ts), name)
	ts.Check(cmd.Process.Signal(s))
	for deadline := time.Now().Add(patience); cmd.Process.Signal(syscall.Signal(0)) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not end: %s", name, ts.ReadFile(name+".log"))
		}
	}
}

// plug NAME DIR [SOCKET] connects the instance's serial port to a machine whose
// root directory is DIR, as a hypervisor would: the machine's ttyS1 is a terminal,
// and the host's end is dialled again whenever it goes away. With a SOCKET the
// hypervisor listens there instead.
func plug(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: plug NAME DIR [SOCKET]")
	}
	client := api.NewUnix(ts.Getenv("IMPRINT_SOCKET"))
	defer client.Close()
	one, err := client.Get(context.Background(), args[0])
	ts.Check(err)
	dev := filepath.Join(ts.MkAbs(args[1]), "dev")
	ts.Check(os.MkdirAll(dev, 0o755))
	tty := filepath.Join(dev, "ttyS1")
	os.Remove(tty)
	master, slave, err := pty.Open()
	ts.Check(err)
	ts.Check(os.Symlink(slave.Name(), tty))
	// Package pty made the file blocking; closing it is to end a read.
	fd, err := unix.Dup(int(master.Fd()))
	ts.Check(err)
	ts.Check(unix.SetNonblock(fd, true))
	master.Close()
	ports := ts.Value("ports").(map[string]*port)
	if before := ports[args[0]]; before != nil {
		before.stop()
	}
	socket := filepath.Join(ts.Getenv("RUN"), string(one.ID), "serial.sock")
	open := func(context.Context) (net.Conn, error) { return net.Dial("unix", socket) }
	if len(args) == 3 {
		open = func(ctx context.Context) (net.Conn, error) { return acceptAt(ctx, args[2]) }
	}
	port := newPort(os.NewFile(uintptr(fd), "pty"), open)
	ports[args[0]] = port
	ts.Defer(func() {
		port.stop()
		slave.Close()
	})
}

// acceptAt listens on socket until somebody connects.
func acceptAt(ctx context.Context, socket string) (net.Conn, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	return l.Accept()
}

// hangup NAME ends the connection between the instance's serial port and the host.
func hangUp(ts *testscript.TestScript, neg bool, args []string) {
	port := ts.Value("ports").(map[string]*port)[args[0]]
	if port == nil {
		ts.Fatalf("%s is not plugged", args[0])
	}
	port.hangUp()
}

// port joins a terminal with a socket.
type port struct {
	master *os.File
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	conn   net.Conn // guarded by mu; nil while nobody is at the host's end
}

func newPort(master *os.File, open func(context.Context) (net.Conn, error)) *port {
	ctx, cancel := context.WithCancel(context.Background())
	p := &port{master: master, cancel: cancel}
	p.done.Go(func() { // down
		for ctx.Err() == nil {
			conn, err := open(ctx)
			if err != nil {
				time.Sleep(20 * time.Millisecond)
				continue
			}
			p.use(conn)
			if ctx.Err() == nil {
				io.Copy(master, conn)
			}
			p.use(nil)
		}
	})
	p.done.Go(func() { // up; what nobody takes is lost, as on a wire
		buf := make([]byte, 4096)
		for ctx.Err() == nil {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			if p.conn != nil {
				p.conn.Write(buf[:n])
			}
			p.mu.Unlock()
		}
	})
	return p
}

func (p *port) use(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn = conn
}

func (p *port) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close() // newPort's loop goes on
	}
}

func (p *port) stop() {
	p.cancel()
	p.use(nil)
	p.master.Close()
	p.done.Wait()
}

// waitfor REGEXP PROGRAM ARG... repeats a program until what it prints matches.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: waitfor REGEXP PROGRAM ARG...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		out = ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if err != nil {
			out += err.Error()
		}
		if want.MatchString(out) != neg {
			return
		}
	}
	ts.Fatalf("waited in vain for %s:\n%s", args[0], out)
}

// expand FILE... puts the environment's variables into files.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args {
		text := os.Expand(ts.ReadFile(file), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o600))
	}
}

// flip FILE changes one bit in the middle of a file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// code STATUS PROGRAM ARG... checks a program's exit status.
func code(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit status %d (%v); want %d", args[1:], got, err, want)
	}
}
