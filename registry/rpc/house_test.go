package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

const repo = "credit/scorer"

// asHeader says who a test calls as; without it, whoever is on this machine.
const asHeader = "X-Test-As"

func actorOf(as string) access.Actor {
	switch as {
	case "nobody":
		return access.Anonymous(false)
	case "reader":
		return access.Actor{ID: "user:r", Grants: []access.Grant{{Role: access.Reader, Repositories: "**"}}}
	case "stranger":
		return access.Actor{ID: "user:s", Grants: []access.Grant{{Role: access.Operator, Repositories: "elsewhere/**"}}}
	}
	return access.Anonymous(true)
}

// A house is a registry over the strict in-memory pair, served over a real
// socket by both transports.
type house struct {
	t        testing.TB
	registry *registry.Registry
	db       *store.MemDB
	blobs    *store.MemBlobs
	conn     *grpc.ClientConn
	handler  http.Handler // of HTTP
	url      string

	mu  sync.Mutex
	now time.Time
	log bytes.Buffer
}

func (h *house) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(p)
}

func (h *house) logged() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

func (h *house) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *house) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

func newHouse(t testing.TB) *house {
	t.Helper()
	id, err := registry.NewIdentity("log.example/test")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, db: store.NewMemDB(), blobs: store.NewMemBlobs(), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	h.blobs.SetClock(h.clock)
	h.registry, err = registry.Open(t.Context(), registry.Options{DB: h.db, Blobs: h.blobs, Identity: id, Clock: h.clock})
	if err != nil {
		t.Fatal(err)
	}
	opt := Options{
		Registry: h.registry,
		Log:      slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelDebug})),
		AuthenticateRPC: func(ctx context.Context) (access.Actor, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return actorOf(strings.Join(md.Get(asHeader), "")), nil
		},
		AuthenticateHTTP: func(r *http.Request) (access.Actor, error) { return actorOf(r.Header.Get(asHeader)), nil },
	}
	g := grpc.NewServer()
	Register(g, opt)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	handler, err := Gateway(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.Handle("/api/v1/backup", Backup(opt))
	mux.Handle("/log/", http.StripPrefix("/log/", Tiles(opt)))
	h.handler = mux
	web := httptest.NewServer(mux)
	h.url = web.URL
	if h.conn, err = grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.conn.Close()
		web.Close()
		g.Stop()
		// A test may be over before the server has begun.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("the gRPC server: %v", err)
		}
		h.registry.Close()
	})
	return h
}

// call makes a gRPC call as somebody.
func (h *house) call(as, method string, q, a proto.Message, opts ...grpc.CallOption) error {
	return h.conn.Invoke(metadata.AppendToOutgoingContext(h.t.Context(), asHeader, as), method, q, a, opts...)
}

// do sends an HTTP request as somebody.
func (h *house) do(as, method, path, body string, headers ...string) (*http.Response, []byte) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set(asHeader, as)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp, raw
}

// A method is one of the interface, with how it is reached.
type method struct {
	name       string // /assay.v1.ModelService/GetVersion
	verb, path string
	in, out    protoreflect.MessageDescriptor
}

// methods are all that the proto files declare.
func methods(t testing.TB) (list []method) {
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_assay_v1_models_proto, pb.File_assay_v1_lineage_proto, pb.File_assay_v1_environments_proto,
		pb.File_assay_v1_gate_proto, pb.File_assay_v1_log_proto, pb.File_assay_v1_trust_proto,
		pb.File_assay_v1_access_proto, pb.File_assay_v1_maintenance_proto,
	} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				one := method{name: fmt.Sprintf("/%s/%s", s.FullName(), m.Name()), in: m.Input(), out: m.Output()}
				rule := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
				switch p := rule.GetPattern().(type) {
				case *annotations.HttpRule_Get:
					one.verb, one.path = http.MethodGet, p.Get
				case *annotations.HttpRule_Put:
					one.verb, one.path = http.MethodPut, p.Put
				case *annotations.HttpRule_Post:
					one.verb, one.path = http.MethodPost, p.Post
				default:
					t.Fatalf("%s is reached by no HTTP request", one.name)
				}
				list = append(list, one)
			}
		}
	}
	if len(list) < 18 {
		t.Fatalf("only %d methods were found", len(list))
	}
	return list
}

func (h *house) blob(repo, data string) ocispec.Descriptor {
	h.t.Helper()
	ctx, me := h.t.Context(), access.Anonymous(true)
	u, err := h.registry.StartUpload(ctx, me, repo, registry.StartUpload{})
	if err != nil {
		h.t.Fatal(err)
	}
	d, err := h.registry.FinishUpload(ctx, me, repo, u.ID, registry.Chunk{Body: strings.NewReader(data), Size: int64(len(data))}, digest.FromString(data))
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// push stores a manifest with one file.
func (h *house) push(repo, artifactType, content string, tags ...string) ocispec.Descriptor {
	h.t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON}
	m.SchemaVersion = 2
	h.blob(repo, "{}")
	l := h.blob(repo, content)
	l.MediaType, l.Annotations = ocispec.MediaTypeImageLayer, map[string]string{ocispec.AnnotationTitle: "model.onnx"}
	m.Layers = []ocispec.Descriptor{l}
	body, err := json.Marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.put(repo, tags[0], body, tags[1:]...)
}

func (h *house) put(repo, reference string, body []byte, tags ...string) ocispec.Descriptor {
	h.t.Helper()
	r, err := h.registry.PutManifest(h.t.Context(), access.Anonymous(true), repo, registry.PutManifest{Reference: reference, Body: body, Tags: tags, Reason: "a test"})
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Descriptor
}

// attach signs a statement about a subject and pushes it.
func (h *house) attach(subject ocispec.Descriptor, k *verify.Key, p attest.Predicate) digest.Digest {
	h.t.Helper()
	s, err := attest.NewStatement(subject.Digest, p)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.attachStatement(subject, k, s, p.PredicateType())
}

func (h *house) attachStatement(subject ocispec.Descriptor, k *verify.Key, statement []byte, predicateType string) digest.Digest {
	h.t.Helper()
	b, err := verify.SignStatement(h.t.Context(), k, statement)
	if err != nil {
		h.t.Fatal(err)
	}
	ref, err := verify.AttachBundle(subject, b, predicateType, h.clock())
	if err != nil {
		h.t.Fatal(err)
	}
	h.blob(repo, "{}")
	h.blob(repo, string(ref.Signed))
	return h.put(repo, string(ref.Descriptor.Digest), ref.Manifest).Digest
}

func (h *house) environment(name, url string) digest.Digest {
	h.t.Helper()
	raw, err := attest.Marshal(attest.Environment{
		Name: name, Target: attest.Target{Protocol: "oip-v2-rest", URL: url, Model: "scorer"}, RecordedAt: h.clock(),
		Labels:      map[string]string{"region": "eu-west-1"},
		Fingerprint: map[string]attest.FingerprintField{"cpu.flags": {Value: "avx2", Assurance: attest.Observed}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.push(attest.EnvironmentRepository(name), attest.EnvironmentType, string(raw), "current").Digest
}

func trustFile(keys map[verify.Role]*verify.Key) string {
	yaml := "version: 1\nidentities:\n"
	for _, role := range verify.Roles {
		yaml += fmt.Sprintf("- id: %s-team\n  roles: [%s]\n  repositories: ['**']\n  publicKey: |\n    %s\n", role, role,
			strings.ReplaceAll(strings.TrimSpace(string(keys[role].PublicPEM())), "\n", "\n    "))
	}
	return yaml
}

// A story is what was done in a registry that is worth asking about.
type story struct {
	keys          map[verify.Role]*verify.Key
	parent, model ocispec.Descriptor
	environment   digest.Digest
	deployment    digest.Digest
	deployedAt    time.Time
}

// tell pushes two versions of a model, says where the newer one came from,
// certifies it for an environment and deploys it there.
func (h *house) tell() (s story) {
	h.t.Helper()
	s.keys = map[verify.Role]*verify.Key{}
	for _, role := range verify.Roles {
		k, err := verify.GenerateKey()
		if err != nil {
			h.t.Fatal(err)
		}
		s.keys[role] = k
	}
	if _, err := h.registry.SetTrust(h.t.Context(), access.Anonymous(true), []byte(trustFile(s.keys))); err != nil {
		h.t.Fatal(err)
	}
	s.parent = h.push(repo, "", "old weights", "1.3.0", "latest")
	h.advance(time.Hour)
	s.model = h.push(repo, "", "weights", "1.4.0", "latest")
	signature, err := attest.Marshal(attest.Statement{
		Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(s.model.Digest)}},
		PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.attachStatement(s.model, s.keys[verify.Release], signature, attest.PredicateSignature)
	h.attach(s.model, s.keys[verify.Provenance], attest.Lineage{
		Parents:     []attest.Parent{{Relation: attest.RevisionOf, Resource: attest.Resource{Digest: attest.Digests(s.parent.Digest)}}},
		Code:        []attest.Code{{Relation: attest.BuiltFrom, Revision: "abc", Resource: attest.Resource{URI: "git+https://example.com/train"}}},
		Datasets:    []attest.Dataset{{Relation: attest.TrainedOn, How: "sha256 of the file", Resource: attest.Resource{Name: "train.csv", Digest: attest.Digests(digest.FromString("data"))}}},
		TrainingRun: &attest.TrainingRun{ID: "run-7"},
		RecordedAt:  h.clock(),
	})
	s.environment = h.environment("prod-eu", "http://one.example")
	some := attest.ResourceOf("", digest.FromString("x"))
	h.attach(s.model, s.keys[verify.Conformance], attest.Certificate{
		CertificateID: "urn:uuid:1", Verdict: attest.Certified, IssuedAt: h.clock(),
		Validity: attest.Validity{NotBefore: h.clock(), NotAfter: h.clock().Add(90 * 24 * time.Hour)},
		Finding: attest.Finding{
			Claim: "at most 1 % of decisions flip", EnvironmentName: "prod-eu", Environment: attest.ResourceOf("", s.environment),
			Suite: some, Criteria: some, Plan: some, Replay: some, Cases: 299,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 299, Passed: true}},
		},
	})
	h.advance(time.Hour)
	s.deployedAt = h.clock()
	s.deployment = h.attach(s.model, s.keys[verify.Deployment], attest.Deployment{
		EnvironmentName: "prod-eu", Environment: attest.ResourceOf("", s.environment), Basis: "observed", StatedBy: "pipeline", From: s.deployedAt,
	})
	h.advance(time.Hour)
	return s
}

// reviewed waits until the statements were verified under the trust file in
// force.
func (h *house) reviewed() {
	h.t.Helper()
	ctx, stop := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() { h.registry.ReviewTrust(ctx); close(done) }()
	defer func() { stop(); <-done }()
	trust, err := h.registry.Trust(ctx, access.Anonymous(true))
	if err != nil {
		h.t.Fatal(err)
	}
	for range 1000 {
		rv, err := h.registry.TrustReview(ctx, access.Anonymous(true))
		if err == nil && rv.Trust == trust.Digest && !rv.Finished.IsZero() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	h.t.Fatal("the review does not end")
}

// contextWith is the context of a request that the gateway let in.
func contextWith(t testing.TB, actor access.Actor) context.Context {
	return context.WithValue(t.Context(), callerKey{}, caller{actor: actor})
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// glob lists files that are no tests.
func glob(t testing.TB, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil || len(all) == 0 {
		t.Fatalf("%s: %v, %v", pattern, all, err)
	}
	return slices.DeleteFunc(all, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

func (h *house) token() registry.Token {
	h.t.Helper()
	token, _, err := h.registry.CreateToken(h.t.Context(), access.Anonymous(true), "a pipeline", []access.Grant{{Role: access.Pusher, Repositories: "credit/**"}}, time.Hour)
	if err != nil {
		h.t.Fatal(err)
	}
	return token
}

// garbage leaves a blob that nothing names, an upload that nobody ends, and
// bytes that no row knows.
func (h *house) garbage() {
	h.t.Helper()
	h.blob("credit/left", "orphan")
	ctx, me := h.t.Context(), access.Anonymous(true)
	u, err := h.registry.StartUpload(ctx, me, "credit/left", registry.StartUpload{})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.registry.AppendUpload(ctx, me, "credit/left", u.ID, registry.Chunk{Body: strings.NewReader("half"), Size: 4}); err != nil {
		h.t.Fatal(err)
	}
	w, err := h.blobs.Create(ctx, 4)
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write([]byte("lost")); err != nil {
		h.t.Fatal(err)
	}
}

// keyOf pushes a model and returns the key of its file.
func (h *house) keyOf(content string) store.Key {
	h.t.Helper()
	before := h.blobs.Keys()
	h.push("credit/damaged", "", content, content)
	for _, k := range h.blobs.Keys() {
		if slices.Contains(before, k) {
			continue
		}
		b, err := h.blobs.Open(h.t.Context(), k)
		if err != nil {
			continue
		}
		raw, err := io.ReadAll(b)
		b.Close()
		if err == nil && string(raw) == content {
			return k
		}
	}
	h.t.Fatalf("%q was not stored", content)
	return ""
}

// A backup over HTTP is whole, leaves out what the client has, is for
// operators, and is broken off rather than ended when it cannot be whole.
func TestBackup(t *testing.T) {
	h := newHouse(t)
	h.tell()
	resp, all := h.do("", http.MethodPost, "/api/v1/backup", "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	db, blobs := store.NewMemDB(), store.NewMemBlobs()
	if _, _, err := registry.Restore(t.Context(), bytes.NewReader(all), registry.RestoreOptions{DB: db, Blobs: blobs, Identity: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if n, want := len(blobs.Keys()), len(h.blobs.Keys()); n != want {
		t.Errorf("%d of %d blobs were restored", n, want)
	}
	if _, less := h.do("", http.MethodPost, "/api/v1/backup", string(digest.FromString("{}"))+"\n"); len(less) >= len(all) {
		t.Error("what the client has was sent")
	}
	for as, want := range map[string]int{"nobody": 401, "reader": 403, "stranger": 403} {
		if resp, _ := h.do(as, http.MethodPost, "/api/v1/backup", ""); resp.StatusCode != want {
			t.Errorf("%s: %s", as, resp.Status)
		}
	}
	if resp, _ := h.do("", http.MethodPost, "/api/v1/backup", "nonsense"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a list that is none: %s", resp.Status)
	}
	if resp, _ := h.do("", http.MethodGet, "/api/v1/backup", ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %s", resp.Status)
	}
	if err := h.blobs.Remove(t.Context(), h.keyOf("zzz")); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+"/api/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	broken, err := http.DefaultClient.Do(r)
	if err != nil {
		return // broken off at once
	}
	defer broken.Body.Close()
	if _, err := io.Copy(io.Discard, broken.Body); err == nil && broken.StatusCode == http.StatusOK {
		t.Error("a backup that lacks a blob ended as if it were whole")
	}
}
