package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/oci"
	"github.com/assay-dev/assay/verify/attest"
)

var update = flag.Bool("update", false, "write the golden files")

// callers are the columns of the matrix. All but the last two have their role
// in team/**, where the model is.
var callers = []struct{ name, role, repositories string }{
	{"nobody", "", ""},
	{"stranger", "operator", "elsewhere/**"},
	{"reader", "reader", "team/**"},
	{"pusher", "pusher", "team/**"},
	{"auditor", "auditor", "team/**"},
	{"operator", "operator", "team/**"},
	{"auditor-of-all", "auditor", "**"},
	{"operator-of-all", "operator", "**"},
}

// An office is a running server with users, a model, an environment it was
// deployed in, and somebody who may do everything.
type office struct {
	t     testing.TB
	root  string // Authorization of who made all this
	http  string
	conn  *grpc.ClientConn
	model ocispec.Descriptor
	n     int
}

const (
	team   = "team/model"
	secret = "correct horse battery"
)

func basic(user string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, secret)
	return r.Header.Get("Authorization")
}

func newOffice(t testing.TB) *office {
	dir := t.TempDir()
	var users, rules strings.Builder
	rules.WriteString("version: 1\ngrants:\n")
	for _, c := range callers[1:] {
		line, err := access.HashPassword(c.name, secret)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&users, line)
		fmt.Fprintf(&rules, "- users: [%s]\n  role: %s\n  repositories: [\"%s\"]\n", c.name, c.role, c.repositories)
	}
	opt := serveOptions{
		addr: "127.0.0.1:0", grpcAddr: "127.0.0.1:0", data: filepath.Join(dir, "data"), logFormat: "text", logLevel: "error",
		htpasswd: filepath.Join(dir, "users"), accessFile: filepath.Join(dir, "access.yaml"),
	}
	for path, content := range map[string]string{opt.htpasswd: users.String(), opt.accessFile: rules.String()} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	s, err := openServer(ctx, opt, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	o := &office{t: t, root: basic("operator-of-all"), http: s.addresses().HTTP}
	if o.conn, err = grpc.NewClient(s.addresses().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		o.conn.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	o.model = o.manifest(team, "1.0.0", nil)
	o.manifest("team/other", "1.0.0", nil)
	// A trust file, so that there is a review.
	o.must(http.StatusOK, "PUT", "/api/v1/trust", []byte(`{"yaml":"version: 1\nidentities: []\n"}`))
	for range 200 {
		if r := ask(o.http, "GET", "/api/v1/trust/review", nil, "Authorization", o.root); r.status == http.StatusOK {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	document, err := attest.Marshal(attest.Environment{
		Name: "team/prod", Target: attest.Target{Protocol: "oip-v2-rest", URL: "http://127.0.0.1:1", Model: "m"}, RecordedAt: time.Now().UTC(),
		Fingerprint: map[string]attest.FingerprintField{"cpu.flags": {Value: "avx2", Assurance: attest.Observed}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.push(attest.EnvironmentRepository("team/prod"), "current", attest.EnvironmentType, document, nil)
	return o
}

func (o *office) must(status int, method, path string, body []byte, headers ...string) reply {
	o.t.Helper()
	r := ask(o.http, method, path, body, append(headers, "Authorization", o.root)...)
	if r.status != status {
		o.t.Fatalf("%s %s: %v, want %d", method, path, r, status)
	}
	return r
}

// blob makes a blob that nothing names.
func (o *office) blob(repo string, body []byte) digest.Digest {
	o.t.Helper()
	d := digest.FromBytes(body)
	o.must(http.StatusCreated, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), body)
	return d
}

func (o *office) fresh() []byte {
	o.n++
	return fmt.Appendf(nil, "content %d %s", o.n, rand.Text())
}

func (o *office) manifestBody(repo, artifactType string, content []byte, subject *ocispec.Descriptor) []byte {
	o.t.Helper()
	o.blob(repo, []byte("{}"))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON, Subject: subject,
		Layers: []ocispec.Descriptor{{MediaType: "application/octet-stream", Digest: o.blob(repo, content), Size: int64(len(content))}}}
	m.SchemaVersion = 2
	body, err := json.Marshal(m)
	if err != nil {
		o.t.Fatal(err)
	}
	return body
}

func (o *office) push(repo, reference, artifactType string, content []byte, subject *ocispec.Descriptor) ocispec.Descriptor {
	o.t.Helper()
	body := o.manifestBody(repo, artifactType, content, subject)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if reference == "" {
		reference = string(d.Digest)
	}
	o.must(http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+reference, body, "Content-Type", d.MediaType)
	return d
}

func (o *office) manifest(repo, reference string, subject *ocispec.Descriptor) ocispec.Descriptor {
	o.t.Helper()
	return o.push(repo, reference, "application/x-test", o.fresh(), subject)
}

func (o *office) upload() string {
	o.t.Helper()
	return o.must(http.StatusAccepted, "POST", "/v2/"+team+"/blobs/uploads/", nil).header.Get("Location")
}

func (o *office) token() string {
	o.t.Helper()
	body := `{"name": "t", "ttl": "3600s", "grants": [{"role": "reader", "repositories": "team/**"}]}`
	var a struct{ Token struct{ Id string } }
	if err := json.Unmarshal(o.must(http.StatusOK, "POST", "/api/v1/tokens", []byte(body)).body, &a); err != nil {
		o.t.Fatal(err)
	}
	return a.Token.Id
}

// person enrolls somebody.
func (o *office) person() string {
	o.t.Helper()
	o.must(http.StatusOK, "POST", "/api/v1/persons", []byte(`{"id":"p-18","name":"Bob Example"}`))
	return "p-18"
}

// A question is one request, made anew for each cell: it would succeed if it
// were allowed.
type question struct {
	method, path string
	body         []byte
	headers      []string
}

// ociQuestions has a row, or several, for each of [oci.Routes].
func ociQuestions() map[string][]func(o *office) question {
	v2 := "/v2/" + team
	get := func(path string) func(*office) question {
		return func(*office) question { return question{method: "GET", path: path} }
	}
	withDigest := func(location string, body []byte) string {
		sep := "?"
		if strings.Contains(location, "?") {
			sep = "&"
		}
		return location + sep + "digest=" + string(digest.FromBytes(body))
	}
	return map[string][]func(o *office) question{
		"GET /v2/":                 {get("/v2/")},
		"HEAD /v2/":                {func(*office) question { return question{method: "HEAD", path: "/v2/"} }},
		"GET /v2/_catalog":         {get("/v2/_catalog")},
		"GET /v2/<name>/tags/list": {get(v2 + "/tags/list"), get("/v2/team/none/tags/list")},
		"POST /v2/<name>/blobs/uploads/": {
			func(o *office) question { return question{method: "POST", path: v2 + "/blobs/uploads/"} },
			func(o *office) question {
				body := o.fresh()
				return question{method: "POST", path: withDigest(v2+"/blobs/uploads/", body), body: body}
			},
			// A mount from a repository that only some may read: 201 to them, and
			// 202, as for what is not there, to others.
			func(o *office) question {
				return question{method: "POST", path: v2 + "/blobs/uploads/?from=team/other&mount=" + string(o.blob("team/other", o.fresh()))}
			},
			func(o *office) question {
				return question{method: "POST", path: "/v2/elsewhere/m/blobs/uploads/?from=" + team + "&mount=" + string(o.blob(team, o.fresh()))}
			},
			func(o *office) question { // without from
				return question{method: "POST", path: "/v2/elsewhere/m/blobs/uploads/?mount=" + string(o.blob(team, o.fresh()))}
			},
		},
		"GET /v2/<name>/blobs/uploads/<reference>": {func(o *office) question { return question{method: "GET", path: o.upload()} }},
		"PATCH /v2/<name>/blobs/uploads/<reference>": {func(o *office) question {
			return question{method: "PATCH", path: o.upload(), body: o.fresh()}
		}},
		"PUT /v2/<name>/blobs/uploads/<reference>": {func(o *office) question {
			body := o.fresh()
			return question{method: "PUT", path: withDigest(o.upload(), body), body: body}
		}},
		"DELETE /v2/<name>/blobs/uploads/<reference>": {func(o *office) question { return question{method: "DELETE", path: o.upload()} }},
		"GET /v2/<name>/blobs/<reference>": {
			func(o *office) question {
				return question{method: "GET", path: v2 + "/blobs/" + string(o.blob(team, []byte("{}")))}
			},
			get(v2 + "/blobs/" + string(digest.FromString("nothing"))),
		},
		"HEAD /v2/<name>/blobs/<reference>": {
			func(o *office) question {
				return question{method: "HEAD", path: v2 + "/blobs/" + string(o.blob(team, []byte("{}")))}
			},
			func(*office) question {
				return question{method: "HEAD", path: v2 + "/blobs/" + string(digest.FromString("nothing"))}
			},
		},
		"DELETE /v2/<name>/blobs/<reference>": {func(o *office) question {
			return question{method: "DELETE", path: v2 + "/blobs/" + string(o.blob(team, o.fresh()))}
		}},
		"GET /v2/<name>/manifests/<reference>": {get(v2 + "/manifests/1.0.0"), get(v2 + "/manifests/none"), get("/v2/team/none/manifests/1.0.0")},
		"HEAD /v2/<name>/manifests/<reference>": {
			func(*office) question { return question{method: "HEAD", path: v2 + "/manifests/1.0.0"} },
			func(*office) question { return question{method: "HEAD", path: v2 + "/manifests/none"} },
		},
		"PUT /v2/<name>/manifests/<reference>": {func(o *office) question {
			return question{method: "PUT", path: v2 + "/manifests/latest", body: o.manifestBody(team, "", o.fresh(), nil), headers: []string{"Content-Type", ocispec.MediaTypeImageManifest}}
		}},
		"DELETE /v2/<name>/manifests/<reference>": {
			func(o *office) question {
				return question{method: "DELETE", path: v2 + "/manifests/" + string(o.manifest(team, "", nil).Digest)}
			},
			func(o *office) question {
				o.manifest(team, "passing", nil)
				return question{method: "DELETE", path: v2 + "/manifests/passing"}
			},
		},
		"GET /v2/<name>/referrers/<reference>": {
			func(o *office) question {
				return question{method: "GET", path: v2 + "/referrers/" + string(o.model.Digest)}
			},
			get(v2 + "/referrers/" + string(digest.FromString("nothing"))),
		},
	}
}

// messages has a request for each method of the interface that needs more
// than an empty one.
func (o *office) message(name protoreflect.Name) proto.Message {
	switch name {
	case "CreateToken":
		return &pb.CreateTokenRequest{Name: "x", Ttl: durationpb.New(time.Hour), Grants: []*pb.Grant{{Role: "reader", Repositories: "team/**"}}}
	case "RevokeToken":
		return &pb.RevokeTokenRequest{Id: o.token()}
	case "GetEnvironment":
		return &pb.GetEnvironmentRequest{Name: "team/prod"}
	case "ListDeployments":
		return &pb.ListDeploymentsRequest{Environment: "team/prod", At: timestamppb.Now()}
	case "Decide":
		return &pb.DecideRequest{Repository: team, Reference: "1.0.0", Environment: "team/prod"}
	case "GetLineage":
		return &pb.GetLineageRequest{Repository: team, Reference: "1.0.0"}
	case "ListVersions":
		return &pb.ListVersionsRequest{Repository: team}
	case "GetVersion":
		return &pb.GetVersionRequest{Repository: team, Reference: "1.0.0"}
	case "ResolveTag":
		return &pb.ResolveTagRequest{Repository: team, Tag: "1.0.0"}
	case "ListTagMoves":
		return &pb.ListTagMovesRequest{Repository: team, Tag: "1.0.0"}
	case "ListFacts":
		return &pb.ListFactsRequest{Repository: team, Reference: "1.0.0"}
	case "ListLeaves":
		return &pb.ListLeavesRequest{About: string(o.model.Digest)}
	case "Collect":
		return &pb.CollectRequest{DryRun: true}
	case "TestTrust":
		return &pb.TestTrustRequest{Yaml: "version: 1\nidentities: []\n"}
	case "EnrollPerson":
		return &pb.EnrollPersonRequest{Id: "p-17", Name: "Ann Example"}
	case "GetPerson":
		return &pb.GetPersonRequest{Id: o.person()}
	case "ErasePerson":
		return &pb.ErasePersonRequest{Id: o.person()}
	case "SetTrust":
		return &pb.SetTrustRequest{Yaml: "version: 1\nidentities: []\n"}
	case "SetPolicy":
		return &pb.SetPolicyRequest{Yaml: "version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\n"}
	}
	return nil
}

var placeholder = regexp.MustCompile(`\{([a-z_]+)(=\*\*)?\}`)

// overREST is what the annotation of a method makes of a request.
func overREST(t testing.TB, m protoreflect.MethodDescriptor, q proto.Message) question {
	rule := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	var verb, path string
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		verb, path = "GET", p.Get
	case *annotations.HttpRule_Put:
		verb, path = "PUT", p.Put
	case *annotations.HttpRule_Post:
		verb, path = "POST", p.Post
	default:
		t.Fatalf("%s is reached by no HTTP request", m.FullName())
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	path = placeholder.ReplaceAllStringFunc(path, func(p string) string {
		name := placeholder.FindStringSubmatch(p)[1]
		v, ok := fields[name]
		delete(fields, name)
		if !ok {
			return "0"
		}
		return fmt.Sprint(v)
	})
	if verb == "GET" {
		query := url.Values{}
		for k, v := range fields {
			query.Set(k, fmt.Sprint(v))
		}
		return question{method: verb, path: path + "?" + query.Encode()}
	}
	return question{method: verb, path: path, body: raw, headers: []string{"Content-Type", "application/json"}}
}

func declared() (list []protoreflect.MethodDescriptor) {
	protoregistry.GlobalFiles.RangeFilesByPackage("assay.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				list = append(list, f.Services().Get(i).Methods().Get(j))
			}
		}
		return true
	})
	return list
}

// What everybody gets from every route of every protocol is in
// testdata/access.golden: a change of it is a change of who may do what, and
// is reviewed as such (go test ./cmd/assay -run TestAccess -update).
func TestAccess(t *testing.T) {
	o := newOffice(t)
	var rows [][]string
	row := func(name string, cell func(authorization string) string) {
		r := []string{name}
		for _, c := range callers {
			authorization := ""
			if c.name != "nobody" {
				authorization = basic(c.name)
			}
			r = append(r, cell(authorization))
		}
		rows = append(rows, r)
	}
	header := []string{"ROUTE"}
	for _, c := range callers {
		header = append(header, strings.ToUpper(c.name))
	}
	rows = append(rows, header)
	overHTTP := func(name string, make func(*office) question) {
		row(name, func(authorization string) string {
			q := make(o)
			headers := q.headers
			if authorization != "" {
				headers = append(headers[:len(headers):len(headers)], "Authorization", authorization)
			}
			r := ask(o.http, q.method, q.path, q.body, headers...)
			if r.err != nil || r.status >= 500 {
				t.Errorf("%s: %v", name, r)
			}
			if authorization == basic("stranger") && r.status == http.StatusOK && (bytes.Contains(r.body, []byte("team/")) || bytes.Contains(r.body, []byte(o.model.Digest))) {
				t.Errorf("%s tells a stranger of the team: %v", name, r)
			}
			if authorization == "" && r.status == http.StatusUnauthorized && r.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: 401 without a challenge", name)
			}
			return fmt.Sprint(r.status)
		})
	}

	questions := ociQuestions()
	for _, route := range oci.Routes() {
		if len(questions[route]) == 0 {
			t.Errorf("%s has no row", route)
		}
		for i, make := range questions[route] {
			name := route
			if i > 0 {
				name = fmt.Sprintf("%s (%d)", route, i+1)
			}
			overHTTP(name, make)
		}
	}
	methods := declared()
	if len(methods) < 25 {
		t.Fatalf("only %d methods were found", len(methods))
	}
	for _, m := range methods {
		request := func() proto.Message {
			if q := o.message(m.Name()); q != nil {
				return q
			}
			return dynamicpb.NewMessage(m.Input())
		}
		rule := overREST(t, m, request())
		path, _, _ := strings.Cut(rule.path, "?")
		if m.Name() == "RevokeToken" {
			path = "/api/v1/tokens/<id>/revoke"
		}
		overHTTP(rule.method+" "+path, func(*office) question { return overREST(t, m, request()) })
		name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
		row(name, func(authorization string) string {
			ctx := t.Context()
			if authorization != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
			}
			answer := dynamicpb.NewMessage(m.Output())
			err := o.conn.Invoke(ctx, name, request(), answer)
			if authorization == basic("stranger") && strings.Contains(answer.String(), "team/") {
				t.Errorf("%s tells a stranger of the team: %v", name, answer)
			}
			return status.Code(err).String()
		})
	}
	for _, other := range []string{
		"POST /api/v1/backup", "GET /api/v1/openapi.json", "GET /api/v1/nothing", "GET /log/checkpoint", "GET /log/tile/0/000.p/1", "GET /log/tile/entries/000.p/1",
		"GET /metrics", "GET /healthz", "GET /readyz", "GET /", "GET /v2/nothing",
	} {
		verb, path, _ := strings.Cut(other, " ")
		overHTTP(other, func(*office) question { return question{method: verb, path: path} })
	}

	var got bytes.Buffer
	table(&got, rows)
	golden := filepath.Join("testdata", "access.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("who may do what has changed; if it shall, review the difference after -update. It is now:\n%s", got.String())
	}
	open := map[string]bool{"GET /healthz": true, "GET /readyz": true, "GET /": true}
	for _, r := range rows[1:] {
		if nobody := r[1]; !open[r[0]] && nobody != "401" && nobody != "Unauthenticated" {
			t.Errorf("%s answers %s without credentials", r[0], nobody)
		}
	}
}

// A refusal comes before the body is read, and before it is sent by a client
// that waits for a word.
func TestRefusedBeforeTheBody(t *testing.T) {
	o := newOffice(t)
	for _, as := range []string{"", basic("reader")} {
		var read atomic.Int64 // the client goes on sending while it hears the answer
		body := readerFunc(func(p []byte) (int, error) { read.Add(int64(len(p))); return len(p), nil })
		req, err := http.NewRequest("POST", o.http+"/v2/"+team+"/blobs/uploads/?digest="+string(digest.FromString("x")), io.LimitReader(body, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 1 << 30
		if as != "" {
			req.Header.Set("Authorization", as)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 401, false: 403}[as == ""]; resp.StatusCode != want || read.Load() > 32<<20 {
			t.Errorf("%d after %d bytes of the body, want %d", resp.StatusCode, read.Load(), want)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
