package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hold asks for paths at a fixed rate over some connections and returns how
// long each answer took, sorted. A request that had to wait for the answer
// before it counts from when it was due: a server that makes requests wait does
// not look better for it. That this program was late counts for nobody.
//
// It is one thread that waits for all connections at once: with a goroutine for
// each, its threads and the server's waited for each other on the cores that
// they share (docs/performance.md says how much that was).
func hold(host, method string, perSecond, conns int, during time.Duration, path func(i int) string) ([]time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	at, err := netip.ParseAddrPort(host)
	if err != nil {
		return nil, err
	}
	var list []*asker
	var fds []unix.PollFd
	start := time.Now().Add(50 * time.Millisecond)
	end := start.Add(during)
	each := time.Second * time.Duration(conns) / time.Duration(perSecond)
	for i := range conns {
		fd, err := connect(at)
		if err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", host, err)
		}
		defer unix.Close(fd)
		list = append(list, &asker{fd: fd, due: start.Add(each * time.Duration(i) / time.Duration(conns))})
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	var took []time.Duration
	rng := rand.New(rand.NewPCG(1, 2))
	chunk := make([]byte, 64*kib)
	for {
		// What is due is asked for; the next thing is an answer, or the next that is due.
		now, waiting, next := time.Now(), false, end
		for _, a := range list {
			if !a.waiting && a.due.Before(end) && !a.due.After(now) {
				if err := a.ask(now, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAccept: %s\r\n\r\n", method, path(rng.Int()), host, manifestType)); err != nil {
					return nil, err
				}
			}
			if waiting = waiting || a.waiting; !a.waiting && a.due.Before(next) {
				next = a.due
			}
		}
		if !waiting && !now.Before(end) {
			slices.Sort(took)
			return took, nil
		}
		patience := max(0, time.Until(next))
		if !now.Before(end) {
			patience = 10 * time.Second
		}
		timeout := unix.NsecToTimespec(int64(patience))
		switch n, err := unix.Ppoll(fds, &timeout, nil); {
		case err == unix.EINTR, err == nil && n == 0 && now.Before(end):
			continue
		case err != nil:
			return nil, fmt.Errorf("waiting for answers: %w", err)
		case n == 0:
			return nil, fmt.Errorf("%s: no answer in %v", host, patience)
		}
		now = time.Now()
		for i, a := range list {
			if fds[i].Revents == 0 {
				continue
			}
			n, err := unix.Read(a.fd, chunk)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("%s: the connection broke off after %q: %v", host, a.got, err)
			}
			a.got = append(a.got, chunk[:n]...)
			whole, err := a.answered(method)
			if err != nil {
				return nil, err
			}
			if whole {
				took = append(took, now.Sub(a.since))
				a.waiting, a.due = false, a.due.Add(each)
				a.late = a.due.Before(now)
			}
		}
	}
}

// An asker is one connection of hold.
type asker struct {
	fd      int
	due     time.Time // when the next request is to be sent, or the present one was
	late    bool      // the answer before it came after that
	waiting bool      // for an answer
	since   time.Time
	got     []byte // of the answer
}

func connect(to netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func (a *asker) ask(now time.Time, request string) error {
	a.since, a.waiting, a.got = now, true, a.got[:0]
	if a.late {
		a.since = a.due
	}
	if n, err := unix.Write(a.fd, []byte(request)); err != nil || n < len(request) {
		return fmt.Errorf("sending a request: %d of %d bytes: %v", n, len(request), err)
	}
	return nil
}

// answered reports whether all of the answer has come.
func (a *asker) answered(method string) (bool, error) {
	_, body, ok := bytes.Cut(a.got, []byte("\r\n\r\n"))
	if !ok {
		return false, nil
	}
	if !bytes.HasPrefix(a.got, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("%s was answered with %q", method, a.got)
	}
	_, after, _ := bytes.Cut(a.got, []byte("\r\nContent-Length: "))
	number, _, _ := bytes.Cut(after, []byte("\r"))
	length, err := strconv.Atoi(string(number))
	if err != nil {
		return false, fmt.Errorf("%s was answered without a length: %q", method, a.got)
	}
	return method == "HEAD" || len(body) >= length, nil
}

// serveBytesVariable makes this program the limit of what is asked for at a
// rate: a bare server of net/http that answers everything with the same few
// bytes from memory.
const serveBytesVariable = "ASSAY_BENCH_SERVE_BYTES"

// serveBytes is that program. It writes its address to a file beside the other.
func serveBytes(path string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return serveAt(path+".addr", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", manifestType)
		h.Set("Content-Length", strconv.Itoa(len(body)))
		h.Set("Docker-Content-Digest", digestOf(nil))
		if r.Method != http.MethodHead {
			w.Write(body)
		}
	})
}

func (b *bench) startBytesServer(path string, body []byte) (*process, error) {
	self, err := os.Executable()
	if err == nil {
		err = os.WriteFile(path, body, 0o644)
	}
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveBytesVariable+"="+path)
	return b.startOwn("bare server", path+".addr", cmd)
}
