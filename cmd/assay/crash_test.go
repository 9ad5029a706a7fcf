package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	logs "github.com/assay-dev/assay/registry/tlog"
)

// soak tells whether the long version of a test is asked for.
func soak() bool { return os.Getenv("ASSAY_SOAK") != "" }

// A pusher is a client that works in a repository of its own: it pushes,
// resumes, tags and deletes, and remembers what the server acknowledged. What
// was asked for and not answered may have happened or not.
type pusher struct {
	repo string
	rand *rand.Rand
	url  string

	blobs     map[digest.Digest][]byte
	manifests map[digest.Digest]*manifestFate
	tags      map[string]map[digest.Digest]bool // what a tag may point to; "" is nothing
	upload    *openUpload
	acked     int // how many writes were
}

type manifestFate struct {
	body            []byte
	present, absent bool // what may be
}

// openUpload is an upload that lasts over crashes.
type openUpload struct {
	location string
	whole    []byte
	acked    int  // by the answer to a piece
	at       int  // where the client believes it stands
	lost     bool // that is not so: it has to ask
}

func newPusher(n int, seed uint64) *pusher {
	return &pusher{repo: fmt.Sprintf("team-%d/model", n), rand: rand.New(rand.NewPCG(seed, uint64(n))),
		blobs: map[digest.Digest][]byte{}, manifests: map[digest.Digest]*manifestFate{}, tags: map[string]map[digest.Digest]bool{}}
}

func (c *pusher) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(c.rand.Uint32())
	}
	return b
}

// work goes on until the server does not answer, which it returns nil for, or
// answers as it must not.
func (c *pusher) work(url string, stop *atomic.Bool) error {
	c.url = url
	for !stop.Load() {
		var r reply
		var err error
		switch c.rand.IntN(10) {
		case 0, 1:
			r, err = c.pushBlob()
		case 2, 3:
			r, err = c.goOn()
		case 4, 5, 6:
			r, err = c.pushManifest()
		case 7:
			r, err = c.moveTag()
		case 8:
			r, err = c.deleteTag()
		case 9:
			r, err = c.deleteManifest()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.repo, err)
		}
		if r.err != nil {
			return nil // the server is gone
		}
	}
	return nil
}

// expect tells an answer that was hoped for from one that may come with a
// crash, and both from a wrong one.
func expect(r reply, status int) (bool, error) {
	switch {
	case r.err != nil || r.status >= 500:
		return false, nil
	case r.status != status:
		return false, fmt.Errorf("%v, want %d", r, status)
	}
	return true, nil
}

func (c *pusher) pushBlob() (reply, error) {
	body := c.bytes(1 + c.rand.IntN(64<<10))
	d := digest.FromBytes(body)
	r := ask(c.url, "POST", "/v2/"+c.repo+"/blobs/uploads/?digest="+string(d), body)
	ok, err := expect(r, http.StatusCreated)
	if ok {
		c.blobs[d] = body
		c.acked++
	}
	return r, err
}

// goOn begins an upload, or goes on with the one that there is: by the last
// location, or after asking how far it came.
func (c *pusher) goOn() (reply, error) {
	u := c.upload
	if u == nil {
		u = &openUpload{whole: c.bytes(1<<20 + c.rand.IntN(3<<20))}
		r := ask(c.url, "POST", "/v2/"+c.repo+"/blobs/uploads/", nil)
		ok, err := expect(r, http.StatusAccepted)
		if ok {
			u.location = r.header.Get("Location")
			c.upload = u
		}
		return r, err
	}
	if u.lost || c.rand.IntN(2) == 0 {
		r := ask(c.url, "GET", u.location, nil)
		if r.status == http.StatusNotFound && u.acked == 0 {
			c.upload = nil // nothing was received, nothing is lost
			return r, nil
		}
		ok, err := expect(r, http.StatusNoContent)
		if !ok {
			return r, err
		}
		offset := 0
		if _, last, ok := strings.Cut(r.header.Get("Range"), "-"); ok {
			n, err := strconv.Atoi(last)
			if err != nil {
				return r, err
			}
			if offset = n + 1; n == 0 {
				offset = 0 // "0-0" is also how nothing is written
			}
		}
		if offset < u.acked {
			return r, fmt.Errorf("of %d bytes that were acknowledged, %d are left", u.acked, offset)
		}
		u.at, u.location, u.lost = offset, r.header.Get("Location"), false
	}
	if u.at == len(u.whole) {
		d := digest.FromBytes(u.whole)
		sep := "?"
		if strings.Contains(u.location, "?") {
			sep = "&"
		}
		r := ask(c.url, "PUT", u.location+sep+"digest="+string(d), nil)
		if u.acked == 0 && r.status == http.StatusNotFound {
			c.upload = nil
			return r, nil
		}
		ok, err := expect(r, http.StatusCreated)
		if ok {
			c.blobs[d] = u.whole
			c.acked++
		}
		if ok || r.err != nil || r.status >= 500 {
			c.upload = nil // it may have been closed
		}
		return r, err
	}
	// Without having asked, the client believes its last answer: if there was
	// one it did not hear, it sends the piece again.
	chunk := u.whole[u.at:min(len(u.whole), u.at+1+c.rand.IntN(1<<20))]
	r := ask(c.url, "PATCH", u.location, chunk, "Content-Range", fmt.Sprintf("%d-%d", u.at, u.at+len(chunk)-1), "Content-Type", "application/octet-stream")
	if u.acked == 0 && r.status == http.StatusNotFound {
		c.upload = nil
		return r, nil
	}
	if r.status == http.StatusRequestedRangeNotSatisfiable && u.at > u.acked {
		// It had bytes whose sync failed, said so when it was asked, and has been
		// started again since.
		u.lost = true
		return r, nil
	}
	ok, err := expect(r, http.StatusAccepted)
	if ok {
		u.at += len(chunk)
		u.acked = u.at
		u.location = r.header.Get("Location")
		c.acked++
	}
	return r, err
}

func (c *pusher) tag() string { return fmt.Sprintf("t%d", c.rand.IntN(4)) }

func (c *pusher) pushManifest() (reply, error) {
	if len(c.blobs) == 0 {
		return c.pushBlob()
	}
	layers := make([]ocispec.Descriptor, 1+c.rand.IntN(3))
	names := slices.Sorted(maps.Keys(c.blobs))
	for i := range layers {
		d := names[c.rand.IntN(len(names))]
		layers[i] = ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(c.blobs[d]))}
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: layers[0], Layers: layers, Annotations: map[string]string{"n": fmt.Sprint(c.rand.Uint64())}}
	m.SchemaVersion = 2
	body, err := json.Marshal(m)
	if err != nil {
		return reply{}, err
	}
	d := digest.FromBytes(body)
	f := &manifestFate{body: body, present: true, absent: true}
	c.manifests[d] = f
	return c.setTag(f, d)
}

func (c *pusher) setTag(f *manifestFate, d digest.Digest) (reply, error) {
	t := c.tag()
	if c.tags[t] == nil {
		c.tags[t] = map[digest.Digest]bool{"": true}
	}
	c.tags[t][d] = true
	r := ask(c.url, "PUT", "/v2/"+c.repo+"/manifests/"+t, f.body, "Content-Type", ocispec.MediaTypeImageManifest)
	ok, err := expect(r, http.StatusCreated)
	if ok {
		f.present, f.absent = true, false
		c.tags[t] = map[digest.Digest]bool{d: true}
		c.acked++
	} else if f.absent {
		f.present = true
	}
	return r, err
}

func (c *pusher) any() (digest.Digest, *manifestFate) {
	names := slices.Sorted(maps.Keys(c.manifests))
	if len(names) == 0 {
		return "", nil
	}
	d := names[c.rand.IntN(len(names))]
	return d, c.manifests[d]
}

func (c *pusher) moveTag() (reply, error) {
	d, f := c.any()
	if f == nil {
		return c.pushManifest()
	}
	return c.setTag(f, d)
}

func (c *pusher) deleteTag() (reply, error) {
	t := c.tag()
	may := c.tags[t]
	if may == nil {
		return reply{}, nil
	}
	was := maps.Clone(may)
	may[""] = true
	r := ask(c.url, "DELETE", "/v2/"+c.repo+"/manifests/"+t, nil)
	if r.status == http.StatusNotFound && was[""] {
		c.tags[t] = map[digest.Digest]bool{"": true}
		return r, nil
	}
	ok, err := expect(r, http.StatusAccepted)
	if ok {
		c.tags[t] = map[digest.Digest]bool{"": true}
		c.acked++
	}
	return r, err
}

func (c *pusher) deleteManifest() (reply, error) {
	d, f := c.any()
	if f == nil {
		return reply{}, nil
	}
	couldLack := f.absent
	f.absent = true
	for _, may := range c.tags {
		if may[d] {
			may[""] = true
		}
	}
	r := ask(c.url, "DELETE", "/v2/"+c.repo+"/manifests/"+string(d), nil)
	gone := r.err == nil && (r.status == http.StatusAccepted || r.status == http.StatusNotFound && couldLack)
	if gone {
		f.present = false
		delete(c.manifests, d)
		for _, may := range c.tags {
			delete(may, d)
			may[""] = true
		}
		c.acked++
		return r, nil
	}
	_, err := expect(r, http.StatusAccepted)
	return r, err
}

// lost lists what was acknowledged and is not there, or not as it was.
func (c *pusher) lost(url string) (list []string) {
	miss := func(format string, args ...any) { list = append(list, c.repo+": "+fmt.Sprintf(format, args...)) }
	for d, body := range c.blobs {
		if r := ask(url, "GET", "/v2/"+c.repo+"/blobs/"+string(d), nil); r.status != http.StatusOK || !bytes.Equal(r.body, body) {
			miss("blob %s: %v", d, r)
		}
	}
	for d, f := range c.manifests {
		r := ask(url, "GET", "/v2/"+c.repo+"/manifests/"+string(d), nil)
		switch {
		case r.status == http.StatusOK && f.present && bytes.Equal(r.body, f.body):
			f.absent = false
		case r.status == http.StatusNotFound && f.absent:
			delete(c.manifests, d)
		default:
			miss("manifest %s: %v", d, r)
		}
	}
	for t, may := range c.tags {
		r := ask(url, "HEAD", "/v2/"+c.repo+"/manifests/"+t, nil)
		is := digest.Digest(r.header.Get("Docker-Content-Digest"))
		if r.status != http.StatusOK && r.status != http.StatusNotFound || !may[is] {
			miss("tag %s is %q, and may be %v (%d)", t, is, slices.Sorted(maps.Keys(may)), r.status)
		}
		c.tags[t] = map[digest.Digest]bool{is: true}
	}
	if u := c.upload; u != nil {
		c.url = url
		for c.upload == u {
			r, err := c.goOn()
			if err != nil || r.err != nil || r.status >= 500 {
				miss("an upload cannot go on: %v, %v", r, err)
				c.upload = nil
			}
		}
		d := digest.FromBytes(u.whole)
		if c.blobs[d] == nil {
			return list // it had received nothing, or is listed already
		}
		if r := ask(url, "GET", "/v2/"+c.repo+"/blobs/"+string(d), nil); r.status != http.StatusOK || sha256.Sum256(r.body) != sha256.Sum256(u.whole) {
			miss("an upload that went on: %v", r)
		}
	}
	return list
}

// A crowd is several pushers, and a reader who keeps checkpoints.
type crowd struct {
	t       testing.TB
	pushers []*pusher
	signed  logs.Tree
}

func newCrowd(t testing.TB, n int) *crowd {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &crowd{t: t}
	for i := range n {
		c.pushers = append(c.pushers, newPusher(i, seed))
	}
	return c
}

// during lets everybody work while f runs, and returns when the server is gone
// or all have stopped.
func (c *crowd) during(p *process, f func()) {
	c.t.Helper()
	var stop atomic.Bool
	var all sync.WaitGroup
	for _, u := range c.pushers {
		all.Go(func() {
			if err := u.work(p.HTTP, &stop); err != nil {
				c.t.Error(err)
			}
		})
	}
	all.Go(func() {
		for !stop.Load() {
			if tree, err := p.checkpoint(); err == nil {
				c.signed = tree
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	f()
	stop.Store(true)
	all.Wait()
}

// settled restarts the server, and looks that nothing was lost and everything
// is sound.
func (c *crowd) settled(data string) {
	c.t.Helper()
	p := startProcess(c.t, data, nil).ready()
	p.extends(c.signed)
	for _, u := range c.pushers {
		for _, l := range u.lost(p.HTTP) {
			c.t.Error(l)
		}
	}
	p.stop()
	p.fsck()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

func (c *crowd) acked() (n int) {
	for _, u := range c.pushers {
		n += u.acked
	}
	return n
}

// Killed at any moment, the server has everything that it acknowledged.
func TestKilledAtRandom(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	c := newCrowd(t, 4)
	rounds := 4
	if soak() {
		rounds = 200
	}
	for range rounds {
		p := startProcess(t, data, nil).ready()
		c.during(p, func() {
			time.Sleep(time.Duration(200+rand.IntN(1500)) * time.Millisecond)
			p.kill()
		})
		c.settled(data)
	}
	t.Logf("%d writes were acknowledged", c.acked())
	if c.acked() < 50*rounds/4 {
		t.Error("hardly anything was written")
	}
}

// tracer returns strace with what it shall do to system calls.
func tracer(t testing.TB, inject ...string) []string {
	path, err := exec.LookPath("strace")
	if err != nil {
		needed(t, "strace is not installed: run 'make deps'")
	}
	if out, err := exec.Command(path, "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("this machine does not let processes be traced: %v %s", err, out)
	}
	// Not --seccomp-bpf: strace 6.1 then only counts to one.
	args := []string{path, "-f", "-qq", "-o", os.DevNull}
	for _, i := range inject {
		name, _, _ := strings.Cut(i, ":")
		args = append(args, "-e", "trace="+name, "-e", "inject="+i)
	}
	return args
}

// needed fails where everything must be installed, and skips elsewhere.
func needed(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// The points at which the state on the disk changes are system calls: the
// server is killed in front of the n-th of each.
func TestKilledAtEachPoint(t *testing.T) {
	ordinals, patience := []int{1, 4, 9}, 1500*time.Millisecond
	if soak() {
		ordinals, patience = nil, 3*time.Second
		for n := 1; n <= 25; n++ { // strace counts for each thread
			ordinals = append(ordinals, n)
		}
	}
	reached := map[string]int{}
	for _, call := range []string{"fsync", "fdatasync", "msync", "linkat,renameat,renameat2,rename", "unlinkat,unlink", "ftruncate"} {
		t.Run(call, func(t *testing.T) {
			for i, n := range append([]int{1}, ordinals...) {
				data := filepath.Join(t.TempDir(), "data")
				c := newCrowd(t, 3)
				// The first time there is no data yet; then a first life, so that
				// the second begins with something.
				if i > 0 {
					p := startProcess(t, data, nil).ready()
					c.during(p, func() { time.Sleep(200 * time.Millisecond); p.kill() })
				}
				before := c.acked()
				p := startProcess(t, data, tracer(t, fmt.Sprintf("%s:signal=SIGKILL:when=%d", call, n)))
				if p.HTTP != "" {
					c.during(p, func() {
						select {
						case <-p.done:
							reached[call]++
						case <-time.After(patience):
							p.kill()
						}
					})
				} else {
					reached[call]++ // while it started
				}
				t.Logf("before call %d: %d times reached, %d acknowledged", n, reached[call], c.acked()-before)
				c.settled(data)
			}
			t.Logf("reached %d times", reached[call])
		})
	}
	for _, call := range []string{"fsync", "msync"} {
		if reached[call] == 0 {
			t.Errorf("%s was never reached: this shows nothing", call)
		}
	}
}

// When a sync fails, what it was for is not acknowledged, the server says so
// and writes no more; started again, it has all that it acknowledged.
func TestFailedSyncs(t *testing.T) {
	for _, call := range []string{"msync", "fsync", "fdatasync"} {
		t.Run(call, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			c := newCrowd(t, 3)
			p := startProcess(t, data, nil).ready()
			c.during(p, func() { time.Sleep(300 * time.Millisecond); p.kill() })
			p = startProcess(t, data, tracer(t, call+":error=EIO:when=40+")).ready()
			refused := false
			c.during(p, func() {
				for range 80 {
					r := ask(p.HTTP, "POST", "/v2/probe/blobs/uploads/?digest="+string(digest.FromString(fmt.Sprint(time.Now()))), []byte("x"))
					refused = refused || r.status >= 500
					time.Sleep(25 * time.Millisecond)
				}
			})
			ready := ask(p.HTTP, "GET", "/readyz", nil)
			if call == "msync" && (ready.status != http.StatusServiceUnavailable || !strings.HasPrefix(string(ready.body), "poisoned")) {
				t.Errorf("/readyz: %v", ready)
			}
			if r := ask(p.HTTP, "GET", "/healthz", nil); r.status != http.StatusOK {
				t.Errorf("/healthz: %v", r)
			}
			p.kill()
			c.settled(data)
			if call == "msync" && c.acked() == 0 {
				t.Error("nothing was acknowledged at all")
			}
		})
	}
}

// mountImage mounts an image file, or skips where that is not allowed.
func mountImage(t testing.TB, image, at string) {
	t.Helper()
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Skipf("this machine does not let image files be mounted: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", at).Run() })
}

// powerCut runs a server on a file system of its own, stops it in mid-work,
// and returns the crowd and a folder with what a power cut would leave: of the
// file system's image what had reached it.
func powerCut(t testing.TB, wrap []string, work time.Duration) (*crowd, string) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		needed(t, "mkfs.ext4 is not installed: run 'make deps'")
	}
	dir := t.TempDir()
	image, live := filepath.Join(dir, "disk.img"), filepath.Join(dir, "live")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(2 << 30); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v %s", err, out)
	}
	mountImage(t, image, live)
	p := startProcess(t, filepath.Join(live, "data"), wrap).ready()
	c := newCrowd(t, 4)
	cut := filepath.Join(dir, "cut.img")
	c.during(p, func() {
		time.Sleep(work)
		if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil {
			t.Error(err)
		}
		time.Sleep(50 * time.Millisecond) // until all its threads stand
		if err := copySparse(image, cut); err != nil {
			t.Error(err)
		}
		p.kill()
	})
	after := filepath.Join(dir, "after")
	mountImage(t, cut, after)
	return c, filepath.Join(after, "data")
}

// copySparse copies a file and leaves out its holes.
func copySparse(from, to string) error {
	out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

// What was acknowledged survives a power cut.
func TestPowerCut(t *testing.T) {
	rounds := 2
	if soak() {
		rounds = 50
	}
	for range rounds {
		c, data := powerCut(t, nil, time.Duration(1500+rand.IntN(1500))*time.Millisecond)
		c.settled(data)
		t.Logf("%d writes were acknowledged", c.acked())
		if c.acked() < 20 {
			t.Error("hardly anything was written")
		}
	}
}

// The same with a disk that only claims to have synced must lose something, or
// TestPowerCut shows nothing.
func TestPowerCutWithoutSyncs(t *testing.T) {
	c, data := powerCut(t, tracer(t, "fsync,fdatasync,msync,sync_file_range,syncfs:retval=0"), 3*time.Second)
	if c.acked() == 0 {
		t.Fatal("nothing was written")
	}
	p := startProcess(t, data, nil)
	if p.HTTP == "" {
		return // so much is lost that it does not even start
	}
	lost := 0
	for _, u := range c.pushers {
		lost += len(u.lost(p.HTTP))
	}
	p.stop()
	if lost == 0 {
		t.Errorf("of %d writes that were acknowledged and never synced none was lost", c.acked())
	}
	t.Logf("%d of about %d are lost", lost, c.acked())
}
