package oci

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/fs"
)

// slowServer is a server that waits for nobody longer than stall. gone counts
// the connections that are over.
func slowServer(t testing.TB, h *house, stall time.Duration) (server *httptest.Server, gone *atomic.Int64) {
	gone = new(atomic.Int64)
	server = httptest.NewUnstartedServer(Patience(Handler(Options{
		Registry:     h.registry,
		Authenticate: func(*http.Request) (access.Actor, error) { return access.Anonymous(true), nil },
	}), stall))
	server.Config.ReadHeaderTimeout = stall
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			gone.Add(1)
		}
	}
	server.Start()
	return server, gone
}

// Hundreds of clients that send a little and then nothing, or take a little
// and then nothing, cost little memory while they are there, and nothing once
// their time is over.
func TestSlowClients(t *testing.T) {
	const clients = 300
	h := newHouse(t, store.NewMemBlobs())
	big := make([]byte, 64<<20) // more than the sockets hold
	d := digest.FromBytes(big)
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(d), body: string(big), status: 201})
	h.Client().CloseIdleConnections()
	time.Sleep(50 * time.Millisecond)
	before := goleak.IgnoreCurrent()
	server, gone := slowServer(t, h, 2*time.Second)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	base := heap()
	var conns []net.Conn
	for i := range clients {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		switch i % 3 {
		case 0: // in the middle of a header
			io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
		case 1: // in the middle of a body
			fmt.Fprintf(conn, "POST /v2/slow%d/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nhello", i, d)
		case 2: // in the middle of an answer
			fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", d)
		}
	}
	time.Sleep(500 * time.Millisecond)
	each := (int64(heap()) - int64(base)) / clients
	t.Logf("a client that stands still costs %d bytes", each)
	if each > 64<<10 {
		t.Error("that is more than it may")
	}
	// None of them does anything until the server has sent all of them away:
	// one that went on by itself would not show that.
	for began := time.Now(); gone.Load() < clients; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("%d of %d clients that stand still were sent away", gone.Load(), clients)
		}
	}
	for i, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := io.Copy(io.Discard, conn)
		if e, ok := err.(net.Error); ok && e.Timeout() || n >= int64(len(big)) {
			t.Fatalf("a client that stands still %s is not sent away: %d bytes, %v", []string{"in a header", "in a body", "in an answer"}[i%3], n, err)
		}
		conn.Close()
	}
	server.Close()
	goleak.VerifyNone(t, before)
}

// A file is handed to the kernel as a whole, and the deadline comes in the middle
// of it, many times: a client that takes enough each time has all of it, and one
// that does not is sent away.
func TestSlowClientsOfFiles(t *testing.T) {
	const stall = 800 * time.Millisecond
	blobs, err := fs.Open(filepath.Join(t.TempDir(), "blobs"), fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, blobs)
	data := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	d := digest.FromBytes(data)
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(d), body: string(data), status: 201})
	server, gone := slowServer(t, h, stall)
	defer server.Close()

	// pull takes a piece every 10 ms, until the server has closed.
	pull := func(piece int) (got []byte, took time.Duration, err error) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			return nil, 0, err
		}
		defer conn.Close()
		conn.(*net.TCPConn).SetReadBuffer(256 << 10) // so that the kernel does not take it for the client
		began := time.Now()
		fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", d)
		resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4<<10), nil)
		if err != nil {
			return nil, 0, err
		}
		for buf := make([]byte, piece); ; {
			if gone.Load() == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			n, err := io.ReadFull(resp.Body, buf)
			got = append(got, buf[:n]...)
			if len(got) == len(data) {
				return got, time.Since(began), nil
			}
			if err != nil {
				return got, time.Since(began), err
			}
		}
	}
	got, took, err := pull(256 << 10)
	switch {
	case err != nil || !bytes.Equal(got, data):
		t.Fatalf("a client that takes 25 MB/s has %d of %d bytes after %v: %v", len(got), len(data), took, err)
	case took < 3*stall:
		t.Fatalf("it had all after %v, so no deadline came", took)
	}
	for gone.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	gone.Store(0)
	if got, took, err := pull(4 << 10); err == nil || !bytes.HasPrefix(data, got) {
		t.Fatalf("a client that takes 0.4 MB/s has %d bytes after %v: %v", len(got), took, err)
	}
}

// An upload in whatever order clients may send: it ends as the bytes that were
// acknowledged, or is refused, and what is refused changes nothing.
func TestChunkOrders(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	rapid.Check(t, func(rt *rapid.T) {
		repo := "chunks"
		_, location := h.send(rt, "POST", "/v2/"+repo+"/blobs/uploads/", nil, "")
		locations := []string{location} // all that were ever given out
		offsets := map[string]int{location: 0}
		var want []byte // what the server acknowledged
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			at := rapid.SampledFrom(locations).Draw(rt, "location")
			body := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "body")
			first := -1
			contentRange := ""
			if len(body) > 0 && rapid.Bool().Draw(rt, "with range") {
				first = max(0, len(want)+rapid.IntRange(-3, 3).Draw(rt, "shift"))
				contentRange = fmt.Sprintf("%d-%d", first, first+len(body)-1)
			}
			status, next := h.send(rt, "PATCH", at, body, contentRange)
			begins := offsets[at]
			if first >= 0 {
				begins = first
			}
			// In order, or sent again from the place that its location tells.
			fits := begins == len(want) || begins < len(want) && begins == offsets[at]
			switch {
			case fits && status == http.StatusAccepted:
				want = append(want[:begins:begins], body...)
				locations = append(locations, next)
				offsets[next] = len(want)
			case !fits && status == http.StatusRequestedRangeNotSatisfiable:
			default:
				rt.Fatalf("a piece at %d of %d bytes, to the location of %d: %d", begins, len(want), offsets[at], status)
			}
			req, _ := http.NewRequest("GET", h.URL+locations[len(locations)-1], nil)
			resp, err := h.Client().Do(req)
			if err != nil {
				rt.Fatal(err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Range"); got != "0-"+strconv.Itoa(max(0, len(want)-1)) {
				rt.Fatalf("the upload stands at %q after %d bytes", got, len(want))
			}
		}
		d := digest.FromBytes(want)
		if status, _ := h.send(rt, "PUT", locations[len(locations)-1]+"?digest="+string(d), nil, ""); status != http.StatusCreated {
			rt.Fatalf("closing with the digest of what was acknowledged: %d", status)
		}
		resp, err := h.Client().Get(h.URL + "/v2/" + repo + "/blobs/" + string(d))
		if err != nil {
			rt.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !bytes.Equal(got, want) {
			rt.Fatalf("%d bytes were acknowledged, and others are there", len(want))
		}
	})
}

// send makes one request of an upload and returns its status and location.
func (h *house) send(t rapid.TB, method, path string, body []byte, contentRange string) (status int, location string) {
	req, err := http.NewRequest(method, h.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentRange != "" {
		req.Header.Set("Content-Range", contentRange)
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Location")
}

// FuzzWire sends bytes as they are to the server's port: names, ranges,
// lengths and framing that no client library would write. Whatever comes, the
// server answers no 5xx, does not hang, and is as it was, or sound.
func FuzzWire(f *testing.F) {
	h := newHouse(f, store.NewMemBlobs())
	server, _ := slowServer(f, h, 100*time.Millisecond)
	f.Cleanup(server.Close)
	hello := digest.FromString("hello")
	for _, seed := range []string{
		"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\nhello",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9223372036854775807\r\n\r\nhello",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST /v2/a/blobs/uploads/?digest=" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nfffffffff\r\nhello\r\n0\r\n\r\n",
		"PATCH /v2/a/blobs/uploads/x.0.y HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Range: 18446744073709551615-0\r\nContent-Length: 1\r\n\r\nx",
		"GET /v2/a/blobs/" + string(hello) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=0-0,0-0,1-1,-1,9223372036854775807-\r\n\r\n",
		"PUT /v2/a/manifests/t HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\r\n{}",
		"GET /v2/%2e%2e/%00/blobs/sha256:%ff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"GET /v2/a//b/../c/tags/list?n=1&n=2&last=%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
		"DELETE /v2/a/manifests/sha256:" + strings.Repeat("0", 64) + " HTTP/1.0\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write(raw)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(conn)
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Fatalf("no end after %q", raw)
		}
		// 501 and 505 are net/http's, for what it does not speak.
		if m := strings.HasPrefix(string(answer), "HTTP/1.1 5"); m && !slices.ContainsFunc([]string{"501", "505"}, func(c string) bool { return strings.HasPrefix(string(answer), "HTTP/1.1 "+c) }) {
			t.Errorf("%q is answered %.200q", raw, answer)
		}
	})
}

func image(annotations map[string]string, subject *ocispec.Descriptor) (string, ocispec.Descriptor) {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x-note", Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON}, Subject: subject, Annotations: annotations}
	m.SchemaVersion = 2
	body, err := json.Marshal(m)
	if err != nil {
		panic(err) // it is a plain value
	}
	return string(body), ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
}

// 20,000 statements about one model are listed in one page, newest first, and
// filtered by their type.
func TestManyReferrers(t *testing.T) {
	const many = 20_000
	h := newHouse(t, store.NewMemBlobs())
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(ocispec.DescriptorEmptyJSON.Digest), body: "{}", status: 201})
	body, model := image(nil, nil)
	header := map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}
	h.do(t, exchange{method: "PUT", path: "/v2/a/manifests/1.0.0", header: header, body: body, status: 201})
	// Not over HTTP, and many at once, so that it does not take long.
	indexes := make([]int64, many)
	digests := map[digest.Digest]int{}
	var group errgroup.Group
	group.SetLimit(64)
	for i := range many {
		note, d := image(map[string]string{"n": fmt.Sprint(i)}, &model)
		if i%1000 == 0 {
			note = strings.Replace(note, "x-note", "x-rare", 1)
			d.Digest = digest.FromString(note)
		}
		digests[d.Digest] = i
		group.Go(func() error {
			r, err := h.registry.PutManifest(t.Context(), access.Anonymous(true), "a", registry.PutManifest{Reference: string(d.Digest), Body: []byte(note)})
			indexes[i] = r.LogIndex
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	list := func(query string) (found []ocispec.Descriptor) {
		resp, raw := h.do(t, exchange{method: "GET", path: "/v2/a/referrers/" + string(model.Digest) + query, status: 200})
		var index ocispec.Index
		if err := json.Unmarshal([]byte(raw), &index); err != nil {
			t.Fatal(err)
		}
		if resp.Header.Get("Link") != "" {
			t.Errorf("%d bytes are cut into pages", len(raw))
		}
		return index.Manifests
	}
	all := list("")
	if len(all) != many {
		t.Fatalf("%d of %d referrers", len(all), many)
	}
	seen := map[int]bool{}
	for i, d := range all {
		n, ok := digests[d.Digest]
		if !ok || seen[n] || d.Annotations["n"] != fmt.Sprint(n) {
			t.Fatalf("referrer %d is %+v", i, d)
		}
		seen[n] = true
		if i > 0 && indexes[n] > indexes[digests[all[i-1].Digest]] {
			t.Fatalf("referrer %d is newer than the one before it", i)
		}
	}
	if rare := list("?artifactType=application/x-rare"); len(rare) != many/1000 {
		t.Errorf("%d of a rare type, want %d", len(rare), many/1000)
	}
}

// Tags and repositories are listed in the order of their bytes, in pages that
// together leave nothing out and repeat nothing.
func TestListsInByteOrder(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	header := map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}
	body, _ := image(nil, nil)
	tags := []string{"A", "B", "Z", "_", "a", "a-b", "a.b", "a_b", "b", "v1", "v10", "v2", "0", "9.9"}
	repos := []string{"a", "a-b", "a/b", "a.b", "a0", "z/y/x", "m__n"}
	for _, repo := range repos {
		h.do(t, exchange{method: "POST", path: "/v2/" + repo + "/blobs/uploads/?digest=" + string(ocispec.DescriptorEmptyJSON.Digest), body: "{}", status: 201})
		h.do(t, exchange{method: "PUT", path: "/v2/" + repo + "/manifests/t", header: header, body: body, status: 201})
	}
	rand.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
	for _, tag := range tags {
		h.do(t, exchange{method: "PUT", path: "/v2/tags/manifests/" + tag, header: header, body: body, status: 404}) // its blob is not there
		h.do(t, exchange{method: "POST", path: "/v2/tags/blobs/uploads/?digest=" + string(ocispec.DescriptorEmptyJSON.Digest), body: "{}", status: 201})
		h.do(t, exchange{method: "PUT", path: "/v2/tags/manifests/" + tag, header: header, body: body, status: 201})
		h.do(t, exchange{method: "DELETE", path: "/v2/tags/manifests/t", status: 404})
		break
	}
	for _, tag := range tags[1:] {
		h.do(t, exchange{method: "PUT", path: "/v2/tags/manifests/" + tag, header: header, body: body, status: 201})
	}
	pages := func(path string, n int) (all []string) {
		for next := fmt.Sprintf("%s?n=%d", path, n); next != ""; {
			resp, raw := h.do(t, exchange{method: "GET", path: next, status: 200})
			var page struct{ Tags, Repositories []string }
			if err := json.Unmarshal([]byte(raw), &page); err != nil {
				t.Fatal(err)
			}
			got := append(page.Tags, page.Repositories...)
			next = ""
			if link := resp.Header.Get("Link"); link != "" {
				next, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
				if len(got) != n {
					t.Errorf("%s: a page of %d that is not the last", path, len(got))
				}
			}
			all = append(all, got...)
		}
		return all
	}
	slices.Sort(tags)
	slices.Sort(repos)
	repos = append(repos[:len(repos)-1:len(repos)-1], "tags", "z/y/x")
	for _, n := range []int{1, 3, 100} {
		if got := pages("/v2/tags/tags/list", n); !slices.Equal(got, tags) {
			t.Errorf("pages of %d: %v, want %v", n, got, tags)
		}
		if got := pages("/v2/_catalog", n); !slices.Equal(got, repos) {
			t.Errorf("pages of %d: %v, want %v", n, got, repos)
		}
	}
	// last need not be there.
	_, raw := h.do(t, exchange{method: "GET", path: "/v2/tags/tags/list?last=a-a&n=1", status: 200})
	if !strings.Contains(raw, `"tags":["a-b"]`) {
		t.Errorf("after a-a: %s", raw)
	}
}
