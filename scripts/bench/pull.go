package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// pull fetches a range of a blob and throws it away inside the kernel, so that
// the client costs next to nothing: what is measured is the server.
func (w *wire) pull(path string, from, n int64) error {
	var b bytes.Buffer
	var headers []string
	status := http.StatusOK
	if from >= 0 {
		headers = append(headers, fmt.Sprintf("Range: bytes=%d-%d", from, from+n-1))
		status = http.StatusPartialContent
	}
	w.head(&b, "GET", path, 0, headers)
	if _, err := w.conn.Write(b.Bytes()); err != nil {
		return err
	}
	resp, err := http.ReadResponse(w.r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != status || resp.ContentLength != n {
		return fmt.Errorf("GET %s: %s with %d bytes", path, resp.Status, resp.ContentLength)
	}
	buffered, err := w.r.Discard(int(min(int64(w.r.Buffered()), n)))
	if err != nil {
		return err
	}
	return truncating(w.conn, n-int64(buffered))
}

// truncating reads n bytes with MSG_TRUNC: TCP drops them without copying
// (tcp(7)).
func truncating(c *net.TCPConn, n int64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 4*mib)
	// Being woken for each segment would cost the server, which wakes, more
	// than sending does.
	const low = 512 * kib
	patient := func(fd uintptr, n int) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n) }
	if err := raw.Control(func(fd uintptr) { patient(fd, low) }); err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for n > 0 {
			if n < 2*low {
				patient(fd, 1)
			}
			got, _, err := syscall.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], syscall.MSG_TRUNC|syscall.MSG_DONTWAIT)
			switch {
			case err == syscall.EAGAIN:
				return false
			case err == syscall.EINTR:
			case err != nil:
				failed = err
				return true
			case got == 0:
				failed = io.ErrUnexpectedEOF
				return true
			default:
				n -= int64(got)
			}
		}
		return true
	})
	if failed != nil {
		return failed
	}
	return err
}

// serveFileVariable makes this program the limit of pulls: a server that
// answers every GET with one file, by sendfile, and has nothing else to do. It
// is a process of its own, as the registries are.
const serveFileVariable = "ASSAY_BENCH_SERVE_FILE"

// serveFile is that program. It writes its address to a file beside the other.
func serveFile(path string) error {
	return serveAt(path+".addr", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })
}

// serveAt answers everything, after it has written its address to a file.
func serveAt(addr string, h http.HandlerFunc) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(addr, []byte(l.Addr().String()), 0o644); err != nil {
		return err
	}
	return http.Serve(l, h)
}

func (b *bench) startFileServer(path string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveFileVariable+"="+path)
	return b.startOwn("file server", path+".addr", cmd)
}

// largestFile is the one file in a data folder that is a large blob.
func largestFile(dir string) (path string, err error) {
	var most int64
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(p, "/db/") {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > most {
			most, path = info.Size(), p
		}
		return err
	})
	return path, err
}

// pullRows: from the page cache, one stream and 16 ranges.
func pullRows(b *bench) error {
	n := int64(1 * gib)
	if b.quick {
		n = 256 * mib
	}
	p, err := b.payload(n)
	if err != nil {
		return err
	}
	ours, err := b.startAssay(filepath.Join(b.dir, "ours"))
	if err != nil {
		return err
	}
	defer ours.discard()
	theirs, err := b.startOther(filepath.Join(b.dir, "theirs"))
	if err != nil {
		return err
	}
	defer theirs.discard()
	for _, s := range []*process{ours, theirs} {
		w, err := dial(s.host)
		if err != nil {
			return err
		}
		if _, err := w.push("bench/model", p); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		w.close()
	}
	path := "/v2/bench/model/blobs/" + p.digest
	// The file server sends the same file, as it came into the page cache.
	file, err := largestFile(ours.data)
	if err != nil {
		return err
	}
	plain := filepath.Join(b.dir, "plain")
	if err := os.Link(file, plain); err != nil {
		return err
	}
	defer os.Remove(plain)
	files, err := b.startFileServer(plain)
	if err != nil {
		return err
	}
	defer files.discard()

	once := func(s *process, path string, streams int) (took, cpu time.Duration, err error) {
		wires := make([]*wire, streams)
		for i := range wires {
			if wires[i], err = dial(s.host); err != nil {
				return 0, 0, err
			}
			defer wires[i].close()
		}
		before, err := s.cpu()
		if err != nil {
			return 0, 0, err
		}
		start := time.Now()
		errs := make([]error, streams)
		var wg sync.WaitGroup
		for i, w := range wires {
			wg.Go(func() {
				if streams == 1 {
					errs[i] = w.pull(path, -1, n)
					return
				}
				part := n / int64(streams)
				errs[i] = w.pull(path, part*int64(i), part)
			})
		}
		wg.Wait()
		took = time.Since(start)
		after, err := s.cpu()
		for _, e := range errs {
			if e != nil {
				return 0, 0, fmt.Errorf("%s: %w", s.name, e)
			}
		}
		return took, after - before, err
	}
	// Once for the page cache.
	for _, s := range []*process{files, ours, theirs} {
		if _, _, err := once(s, path, 1); err != nil {
			return err
		}
	}
	var limit, one, ranged, other, oneCPU, otherCPU []time.Duration
	kinds := []struct {
		s       *process
		streams int
		took    *[]time.Duration
		cpu     *[]time.Duration
	}{{files, 1, &limit, nil}, {ours, 1, &one, &oneCPU}, {ours, 16, &ranged, nil}, {theirs, 1, &other, &otherCPU}}
	// A pull takes less than a tenth of a second. Who comes after whom makes a
	// difference of some hundredths (what the one before has left in the caches),
	// so the order is drawn.
	for range 20*b.runs + 1 {
		for _, k := range rand.Perm(len(kinds)) {
			m := kinds[k]
			took, cpu, err := once(m.s, path, m.streams)
			if err != nil {
				return err
			}
			*m.took = append(*m.took, took)
			if m.cpu != nil {
				*m.cpu = append(*m.cpu, cpu)
			}
		}
	}
	b.note("pull, quickest and slowest: file server %v %v, assay %v %v, 16 ranges %v %v, distribution %v %v",
		slices.Min(limit), slices.Max(limit), slices.Min(one), slices.Max(one), slices.Min(ranged), slices.Max(ranged), slices.Min(other), slices.Max(other))
	speed := func(d []time.Duration) string { return fmt.Sprintf("%.2f GiB/s", rate(n, median(d))) }
	b.row(result{
		what: "pull " + size(n) + " from the page cache, one stream", measured: speed(one), limit: "a file server with sendfile: " + speed(limit),
		must: "≥ 0.95 of it", got: median(limit).Seconds() / median(one).Seconds(), need: 0.95, atLeast: true,
	})
	perGiB := func(d []time.Duration) string {
		return fmt.Sprintf("%.2f s/GiB", median(d).Seconds()/float64(n)*gib)
	}
	b.row(result{
		what: "server CPU of that pull", measured: perGiB(oneCPU), limit: "distribution: " + perGiB(otherCPU) + " at " + speed(other),
		must: "≤ 0.70 × it", got: median(oneCPU).Seconds() / median(otherCPU).Seconds(), need: 0.7,
	})
	b.row(result{
		what: "the same blob in 16 ranges at once", measured: speed(ranged), limit: "one stream: " + speed(one),
		must: "≥ 1.00 × it", got: median(one).Seconds() / median(ranged).Seconds(), need: 1, atLeast: true,
	})
	return nil
}
