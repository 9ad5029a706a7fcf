package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.yaml.in/yaml/v3"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/fs"
)

type house struct {
	*httptest.Server
	registry *registry.Registry
	db       *store.MemDB
	blobs    store.Blobs
}

func newHouse(t testing.TB, blobs store.Blobs) *house {
	id, err := registry.NewIdentity("log.example/test")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{db: store.NewMemDB(), blobs: blobs}
	if h.registry, err = registry.Open(t.Context(), registry.Options{DB: h.db, Blobs: blobs, Identity: id}); err != nil {
		t.Fatal(err)
	}
	h.Server = httptest.NewServer(Guard(Patience(Handler(Options{
		Registry: h.registry,
		Authenticate: func(r *http.Request) (access.Actor, error) {
			if r.Header.Get("X-Test-Nobody") != "" {
				return access.Actor{}, nil
			}
			return access.Anonymous(true), nil
		},
	}), time.Minute), GuardOptions{}))
	t.Cleanup(func() {
		h.Server.Close()
		report, err := h.registry.Fsck(context.Background())
		if err != nil || len(report.Findings) > 0 {
			t.Errorf("fsck: %+v, %v", report.Findings, err)
		}
		h.registry.Close()
	})
	return h
}

func (h *house) host() string { return strings.TrimPrefix(h.URL, "http://") }

// tool finds a program that `make tools` builds.
func tool(t *testing.T, name string) string {
	dir := os.Getenv("ASSAY_TOOLS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "assay", "tools")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not built: run 'make tools'", name)
		}
		t.Skipf("%s is not built: run 'make tools'", name)
	}
	return path
}

// The official suite. It exits with 0 on a wrong configuration, so its
// results file is what counts.
func TestOfficialConformance(t *testing.T) {
	suite := tool(t, "conformance")
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			h := newHouse(t, store.NewMemBlobs())
			dir := t.TempDir()
			cmd := exec.Command(suite)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "OCI_REGISTRY="+h.host(), "OCI_TLS=disabled", "OCI_VERSION="+version,
				"OCI_REPO1=conformance/repo1", "OCI_REPO2=conformance/repo2", "OCI_RESULTS_DIR="+dir, "OCI_LOG=warn")
			out, err := cmd.CombinedOutput()
			raw, rerr := os.ReadFile(filepath.Join(dir, "results.yaml"))
			if rerr != nil {
				t.Fatalf("no results: %v\n%s", rerr, out)
			}
			var results struct {
				APIs map[string]string `yaml:"apis"`
				Data map[string]string `yaml:"data"`
			}
			if yerr := yaml.Unmarshal(raw, &results); yerr != nil {
				t.Fatal(yerr)
			}
			if err != nil || len(results.APIs) == 0 || len(results.Data) == 0 {
				t.Errorf("%v: %d APIs, %d kinds of data\n%s", err, len(results.APIs), len(results.Data), tail(out, 4000))
			}
			for _, group := range []map[string]string{results.APIs, results.Data} {
				for what, status := range group {
					// What the suite leaves out by default (pushing manifests
					// whose content is missing, and in 1.1 what is new in
					// dev) is disabled.
					if status != "Pass" && status != "Disabled" {
						t.Errorf("%s: %s", what, status)
					}
				}
			}
			counts := map[string]int{}
			for _, m := range countRE.FindAllStringSubmatch(string(out), -1) {
				counts[m[1]], _ = strconv.Atoi(m[2])
			}
			t.Logf("%v", counts)
			if counts["FAIL"]+counts["Error"]+counts["Skip"] > 0 || counts["Pass"] < 850 || version == "dev" && counts["Disabled"] > 0 {
				t.Errorf("%v: at least 850 passes and nothing else are expected", counts)
			}
		})
	}
}

var countRE = regexp.MustCompile(`(?m)^\s*(Disabled|Skip|Pass|FAIL|Error|Total)\.+:\s*([0-9]+)$`)

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func TestOrasClient(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	ctx := t.Context()
	repo, err := remote.NewRepository(h.host() + "/credit/scorer")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	src := memory.New()
	layer, err := oras.PushBytes(ctx, src, "application/x-model", bytes.Repeat([]byte("weights"), 100_000))
	if err != nil {
		t.Fatal(err)
	}
	model, err := oras.PackManifest(ctx, src, oras.PackManifestVersion1_1, "application/x-model", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Tag(ctx, model, "1.0.0"); err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(ctx, src, "1.0.0", repo, "1.0.0", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	note, err := oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, "application/x-note", oras.PackManifestOptions{
		Subject: &model, ManifestAnnotations: map[string]string{"who": "me"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var found []ocispec.Descriptor
	if err := repo.Referrers(ctx, model, "application/x-note", func(l []ocispec.Descriptor) error { found = append(found, l...); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Digest != note.Digest || found[0].Annotations["who"] != "me" {
		t.Errorf("referrers %+v", found)
	}
	dst := memory.New()
	if _, err := oras.ExtendedCopy(ctx, repo, "1.0.0", dst, "", oras.DefaultExtendedCopyOptions); err != nil {
		t.Fatal(err)
	}
	for _, d := range []ocispec.Descriptor{layer, model, note} {
		if _, err := content.FetchAll(ctx, dst, d); err != nil {
			t.Errorf("%s did not come back: %v", d.MediaType, err)
		}
	}
	// A range of a blob, by seeking.
	rc, err := repo.Blobs().Fetch(ctx, layer)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := rc.(io.Seeker).Seek(7, io.SeekStart); err != nil {
		t.Fatalf("the client cannot seek: %v", err)
	}
	p := make([]byte, 7)
	if _, err := io.ReadFull(rc, p); err != nil || string(p) != "weights" {
		t.Errorf("read %q, %v", p, err)
	}
}

func TestGoContainerRegistryClient(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	ref, err := name.NewTag(h.host()+"/img/app:1.0.0", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := random.Index(10_000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := ggcr.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	back, err := ggcr.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(back); err != nil {
		t.Error(err)
	}
	want, _ := index.Digest()
	if v, err := h.registry.Version(t.Context(), access.Anonymous(true), "img/app", "1.0.0"); err != nil || string(v.Digest) != want.String() || v.Number != 1 {
		t.Errorf("version %+v, %v: the index is the version", v, err)
	}
	list, err := ggcr.Referrers(ref.Context().Digest(want.String()))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := list.IndexManifest(); err != nil || len(m.Manifests) != 0 {
		t.Errorf("referrers %+v, %v", m, err)
	}
}

type exchange struct {
	method, path string
	header       map[string]string
	body         string
	status       int
	want         map[string]string // headers
	code         string
}

func (h *house) do(t *testing.T, e exchange) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(e.method, h.URL+e.path, strings.NewReader(e.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range e.header {
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != e.status {
		t.Errorf("%s %s: %s, want %d: %s", e.method, e.path, resp.Status, e.status, body)
	}
	for k, v := range e.want {
		if got := resp.Header.Get(k); got != v {
			t.Errorf("%s %s: %s is %q, want %q", e.method, e.path, k, got, v)
		}
	}
	if e.code != "" && !strings.Contains(string(body), `"code":"`+e.code+`"`) {
		t.Errorf("%s %s: %s, want code %s", e.method, e.path, body, e.code)
	}
	return resp, string(body)
}

func TestExchanges(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	hello := digest.FromString("hello")
	empty := digest.FromString("{}")
	manifest := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"a/b","digest":"` + string(empty) + `","size":2},"layers":[]}`
	md := digest.FromString(manifest)
	index := map[string]string{"Content-Type": ocispec.MediaTypeImageIndex}
	for _, e := range []exchange{
		{method: "GET", path: "/v2/", status: 200},
		{method: "GET", path: "/v2/", header: map[string]string{"X-Test-Nobody": "1"}, status: 401, code: "UNAUTHORIZED", want: map[string]string{"WWW-Authenticate": `Basic realm="assay"`}},
		{method: "PUT", path: "/v2/a/manifests/t", header: map[string]string{"X-Test-Nobody": "1"}, body: manifest, status: 401, code: "UNAUTHORIZED"},
		{method: "GET", path: "/v2/", header: map[string]string{"Host": "evil.example"}, status: 421},
		{method: "POST", path: "/v2/a/blobs/uploads/", header: map[string]string{"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, status: 403},
		{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(hello), body: "hello", status: 201, want: map[string]string{"Location": "/v2/a/blobs/" + string(hello), "Docker-Content-Digest": string(hello)}},
		{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(hello), body: "hellO", status: 400, code: "DIGEST_INVALID"},
		{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(empty), body: "{}", status: 201},
		{method: "HEAD", path: "/v2/a/blobs/" + string(hello), status: 200, want: map[string]string{"Content-Length": "5", "Accept-Ranges": "bytes", "Etag": `"` + string(hello) + `"`}},
		{method: "GET", path: "/v2/a/blobs/" + string(hello), header: map[string]string{"Range": "bytes=1-2"}, status: 206, want: map[string]string{"Content-Range": "bytes 1-2/5", "Docker-Content-Digest": string(hello)}},
		{method: "GET", path: "/v2/a/blobs/" + string(hello), header: map[string]string{"Range": "bytes=7-9"}, status: 416},
		{method: "GET", path: "/v2/a/blobs/" + string(hello), header: map[string]string{"If-None-Match": `"` + string(hello) + `"`}, status: 304},
		{method: "GET", path: "/v2/b/blobs/" + string(hello), status: 404, code: "BLOB_UNKNOWN"},
		{method: "POST", path: "/v2/b/blobs/uploads/?mount=" + string(hello) + "&from=a", status: 201},
		{method: "POST", path: "/v2/b/blobs/uploads/?mount=" + string(digest.FromString("gone")) + "&from=a", status: 202},
		{method: "PUT", path: "/v2/a/manifests/1.0.0?tag=x&tag=y", header: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}, body: manifest, status: 201, want: map[string]string{"Docker-Content-Digest": string(md), "Assay-Version": "1"}},
		{method: "GET", path: "/v2/a/manifests/y", header: map[string]string{"Range": "bytes=0-"}, status: 206, want: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest, "Cache-Control": "private, no-cache"}},
		{method: "PUT", path: "/v2/a/manifests/1.0.0", header: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}, body: strings.Replace(manifest, "a/b", "a/c", 1), status: 403, code: "DENIED"},
		{method: "PUT", path: "/v2/b/manifests/1.0.0", header: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}, body: manifest, status: 404, code: "MANIFEST_BLOB_UNKNOWN"},
		{method: "PUT", path: "/v2/a/manifests/" + string(hello), header: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}, body: manifest, status: 400, code: "DIGEST_INVALID"},
		{method: "PUT", path: "/v2/a/manifests/.bad", body: manifest, status: 400, code: "MANIFEST_INVALID"},
		{method: "PUT", path: "/v2/a/manifests/big", body: strings.Repeat(" ", registry.MaxManifest+1), status: 413, code: "MANIFEST_INVALID"},
		{method: "PUT", path: "/v2/A/manifests/t", body: manifest, status: 400, code: "NAME_INVALID"},
		{method: "GET", path: "/v2/a/tags/list?n=2", status: 200, want: map[string]string{"Link": `</v2/a/tags/list?last=x&n=2>; rel="next"`}},
		{method: "GET", path: "/v2/a/tags/list?n=0", status: 200, want: map[string]string{"Link": ""}},
		{method: "GET", path: "/v2/a/tags/list?n=-1", status: 400},
		{method: "GET", path: "/v2/never/tags/list", status: 404, code: "NAME_UNKNOWN"},
		{method: "GET", path: "/v2/_catalog", status: 200},
		{method: "GET", path: "/v2/never/referrers/" + string(hello), status: 200, want: index},
		{method: "GET", path: "/v2/a/referrers/" + string(md) + "?artifactType=x/y", status: 200, want: map[string]string{"OCI-Filters-Applied": "artifactType"}},
		{method: "GET", path: "/v2/a/referrers/nonsense", status: 400, code: "DIGEST_INVALID"},
		{method: "DELETE", path: "/v2/a/manifests/x", status: 202},
		{method: "DELETE", path: "/v2/a/manifests/1.0.0", status: 403, code: "DENIED"},
		{method: "DELETE", path: "/v2/a/manifests/" + string(md), status: 403, code: "DENIED"},
		{method: "DELETE", path: "/v2/a/blobs/" + string(empty), status: 403, code: "DENIED"},
		{method: "DELETE", path: "/v2/b/blobs/" + string(hello), status: 202},
		{method: "PATCH", path: "/v2/a/blobs/uploads/nonsense", status: 404, code: "BLOB_UPLOAD_UNKNOWN"},
		{method: "GET", path: "/v2/a/what/ever", status: 404},
		{method: "PUT", path: "/v2/_catalog", status: 405, code: "UNSUPPORTED"},
	} {
		h.do(t, e)
	}
}

// A piece of an upload whose answer was lost is sent again: it is not
// appended twice. One with a Content-Range that does not fit is refused.
func TestReplayedPatch(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	resp, _ := h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/", status: 202})
	first := resp.Header.Get("Location")
	resp, _ = h.do(t, exchange{method: "PATCH", path: first, body: "hello ", status: 202, want: map[string]string{"Range": "0-5"}})
	h.do(t, exchange{method: "PATCH", path: first, body: "hello ", status: 202, want: map[string]string{"Range": "0-5"}})
	h.do(t, exchange{method: "PATCH", path: first, header: map[string]string{"Content-Range": "0-5"}, body: "hello ", status: 202, want: map[string]string{"Range": "0-5"}})
	second := resp.Header.Get("Location")
	h.do(t, exchange{method: "PATCH", path: second, header: map[string]string{"Content-Range": "0-5"}, body: "hello ", status: 416})
	h.do(t, exchange{method: "PATCH", path: second, header: map[string]string{"Content-Range": "9-13"}, body: "world", status: 416})
	h.do(t, exchange{method: "PATCH", path: second, header: map[string]string{"Content-Range": "bytes 6-9/*"}, body: "worl", status: 202, want: map[string]string{"Range": "0-9"}})
	resp, _ = h.do(t, exchange{method: "GET", path: first, status: 204, want: map[string]string{"Range": "0-9"}})
	h.do(t, exchange{method: "PUT", path: resp.Header.Get("Location") + "?digest=" + string(digest.FromString("hello world")), body: "d", status: 201})
	resp, _ = h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/", status: 202})
	h.do(t, exchange{method: "DELETE", path: resp.Header.Get("Location"), status: 204})
	h.do(t, exchange{method: "GET", path: resp.Header.Get("Location"), status: 404})
}

func TestFullDisk(t *testing.T) {
	blobs := store.NewMemBlobs()
	h := newHouse(t, blobs)
	d := digest.FromString("hello")
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(d), body: "hello", status: 201})
	rows, keys := h.db.Rows(), blobs.Keys()
	blobs.SetFull(true)
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/", status: 507})
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(digest.FromString("more")), body: "more", status: 507})
	h.do(t, exchange{method: "GET", path: "/v2/a/blobs/" + string(d), status: 200}) // reading goes on
	if !maps.Equal(rows, h.db.Rows()) || !slices.Equal(keys, blobs.Keys()) {
		t.Error("something was left")
	}
	blobs.SetFull(false)
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(digest.FromString("more")), body: "more", status: 201})
}

// A client that goes away in the middle of a body leaves an upload that can
// go on; one that ends badly for good leaves nothing.
func TestTruncatedBody(t *testing.T) {
	blobs := store.NewMemBlobs()
	h := newHouse(t, blobs)
	rows, keys := h.db.Rows(), blobs.Keys()
	raw := "POST /v2/a/blobs/uploads/?digest=" + string(digest.FromString("hello")) + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhel"
	conn, err := net.Dial("tcp", h.host())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, raw)
	conn.(*net.TCPConn).CloseWrite()
	io.ReadAll(conn)
	conn.Close()
	deadline := time.Now().Add(5 * time.Second)
	for !maps.Equal(rows, h.db.Rows()) || !slices.Equal(keys, blobs.Keys()) {
		if time.Now().After(deadline) {
			t.Fatalf("a truncated upload left something: %d rows, %d blobs", len(h.db.Rows()), len(blobs.Keys()))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A connection that is kept alive outlives the deadlines of its requests, and
// a client that stands still does not.
func TestDeadlines(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	d := digest.FromString("hello")
	server := httptest.NewServer(Patience(Handler(Options{
		Registry: h.registry, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Authenticate: func(*http.Request) (access.Actor, error) { return access.Anonymous(true), nil },
	}), 150*time.Millisecond))
	defer server.Close()
	slow := &house{Server: server, registry: h.registry, db: h.db, blobs: h.blobs}
	slow.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(d), body: "hello", status: 201})
	for range 3 {
		slow.do(t, exchange{method: "GET", path: "/v2/a/blobs/" + string(d), status: 200})
		time.Sleep(200 * time.Millisecond)
	}
	conn, err := net.Dial("tcp", slow.host())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v2/a/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nhello", d)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer, _ := io.ReadAll(conn)
	if !strings.Contains(string(answer), " 400 ") {
		t.Errorf("a client that stands still is answered %q", answer)
	}
}

// counting counts the bytes of files that pass through ReadFrom of the
// connection, where net/http uses sendfile, and how often anything is sent.
type counting struct {
	*net.TCPConn
	l *countingListener
}

func (c counting) ReadFrom(r io.Reader) (int64, error) {
	c.l.sends.Add(1)
	n, err := c.TCPConn.ReadFrom(r)
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			c.l.files.Add(n)
		}
	}
	return n, err
}

func (c counting) Write(p []byte) (int, error) {
	c.l.sends.Add(1)
	return c.TCPConn.Write(p)
}

type countingListener struct {
	net.Listener
	files, sends atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return counting{c.(*net.TCPConn), l}, nil
}

// counted is the house's server once more, over connections that count.
func (h *house) counted(t *testing.T) (*countingListener, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &countingListener{Listener: l}
	server := &http.Server{Handler: Patience(h.Config.Handler, time.Minute)}
	go server.Serve(c)
	t.Cleanup(func() { server.Close() })
	return c, "http://" + l.Addr().String()
}

func TestBlobsAreSentWithSendfile(t *testing.T) {
	blobs, err := fs.Open(filepath.Join(t.TempDir(), "blobs"), fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, blobs)
	data := make([]byte, 3<<20)
	rand.Read(data)
	d := digest.FromBytes(data)
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(d), body: string(data), status: 201})
	l, url := h.counted(t)
	resp, err := http.Get(url + "/v2/a/blobs/" + string(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// net/http sends the first piece itself, to sniff and to send headers.
	if sent := l.files.Load(); sent < int64(len(data))-1<<16 {
		t.Errorf("%d of %d bytes went through the file path of ReadFrom", sent, len(data))
	}
}

// A manifest and the head of its answer go out together, as long as they fit
// into net/http's buffer of 4 KiB: each packet wakes a client.
func TestManifestsAreSentAtOnce(t *testing.T) {
	h := newHouse(t, store.NewMemBlobs())
	h.do(t, exchange{method: "POST", path: "/v2/a/blobs/uploads/?digest=" + string(digest.FromString("{}")), body: "{}", status: 201})
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],"annotations":{"a":%q}}`,
		ocispec.MediaTypeImageManifest, digest.FromString("{}"), strings.Repeat("x", 2000))
	h.do(t, exchange{method: "PUT", path: "/v2/a/manifests/t", body: body, header: map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}, status: 201})
	l, url := h.counted(t)
	resp, err := http.Get(url + "/v2/a/manifests/t")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != body {
		t.Fatalf("%q, %v", got, err)
	}
	if n := l.sends.Load(); n != 1 {
		t.Errorf("it was sent in %d pieces", n)
	}
}

func FuzzRequests(f *testing.F) {
	h := newHouse(f, store.NewMemBlobs())
	f.Add("GET", "/v2/a/blobs/sha256:00", "bytes=0-", "", "")
	f.Add("PATCH", "/v2/a/blobs/uploads/x", "", "0-9", "hello")
	f.Add("PUT", "/v2/a/manifests/t", "", "", "{}")
	f.Add("GET", "/v2/a/tags/list?n=99999999999999999999", "", "", "")
	f.Add("POST", "/v2/../../blobs/uploads/?digest=sha256:xx&mount=y&from=z", "", "", "")
	f.Fuzz(func(t *testing.T, method, path, rng, contentRange, body string) {
		if !strings.HasPrefix(path, "/v2/") {
			return
		}
		req, err := http.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Range", rng)
		req.Header.Set("Content-Range", contentRange)
		w := httptest.NewRecorder()
		h.Config.Handler.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
	})
}

func TestArrows(t *testing.T) {
	allowed := map[string]string{
		"github.com/assay-dev/assay/registry":        "what it speaks for",
		"github.com/assay-dev/assay/registry/access": "who is asking",
		"github.com/assay-dev/assay/store":           "for the file behind a blob, which sendfile needs",
	}
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if _, ok := allowed[p]; !ok && strings.HasPrefix(p, "github.com/assay-dev/") {
			t.Errorf("registry/oci imports %s, which it has no need to know", p)
		}
	}
}
