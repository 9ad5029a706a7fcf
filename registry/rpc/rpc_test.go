package rpc

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	openapi "github.com/assay-dev/assay/proto"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// Off loopback, somebody who has not logged in is told so by every method,
// over both transports, whatever they ask; and whoever is known is answered by
// every method that is declared.
func TestEveryMethodAsksWho(t *testing.T) {
	h := newHouse(t)
	for _, m := range methods(t) {
		path := strings.NewReplacer("{name=**}", "prod", "{index}", "0", "{id}", "0").Replace(m.path)
		if strings.Contains(path, "{") {
			t.Fatalf("%s: %s has a part this test cannot fill", m.name, path)
		}
		if err := h.call("nobody", m.name, dynamicpb.NewMessage(m.in), dynamicpb.NewMessage(m.out)); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s by nobody: %v", m.name, err)
		}
		resp, body := h.do("nobody", m.verb, path, "not even JSON")
		if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" || !strings.Contains(string(body), `"UNAUTHENTICATED"`) {
			t.Errorf("%s %s by nobody: %s %s", m.verb, path, resp.Status, body)
		}
		err := h.call("", m.name, dynamicpb.NewMessage(m.in), dynamicpb.NewMessage(m.out))
		if c := status.Code(err); !slices.Contains([]codes.Code{codes.OK, codes.InvalidArgument, codes.NotFound}, c) {
			t.Errorf("%s with an empty request: %v", m.name, err)
		}
	}
	for _, path := range []string{"/log/checkpoint", "/log/tile/0/000.p/1", "/log/nothing", "/api/v1/openapi.json", "/api/v1/nothing", "/"} {
		if resp, body := h.do("nobody", http.MethodGet, path, ""); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("GET %s by nobody: %s %s", path, resp.Status, body)
		}
	}
	// A header that would be metadata to a gRPC call makes nobody somebody.
	if resp, _ := h.do("nobody", http.MethodGet, "/api/v1/repositories", "", "Grpc-Metadata-"+asHeader, "operator"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("an identity in gateway metadata was believed: %s", resp.Status)
	}
	// Without a way to find out who asks, everybody is nobody.
	handler, err := Gateway(t.Context(), Options{Registry: h.registry})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/repositories", nil)
	w := &recorder{header: http.Header{}}
	handler.ServeHTTP(w, r)
	if w.code != http.StatusUnauthorized {
		t.Errorf("without authentication: %d", w.code)
	}
}

type recorder struct {
	header http.Header
	code   int
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(code int)        { w.code = code }
func (w *recorder) Write(p []byte) (int, error) { return len(p), nil }

// Every method that reads gives the same answer over both transports.
func TestTransportsAgree(t *testing.T) {
	h := newHouse(t)
	s := h.tell()
	at := s.deployedAt.Format(time.RFC3339)
	h.token()
	h.reviewed()
	if _, err := h.registry.EnrollPerson(t.Context(), access.Anonymous(true), "p-17", "Ann Example"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, tc := range []struct {
		method string
		q, a   proto.Message
		path   string
	}{
		{"ModelService/ListRepositories", &pb.ListRepositoriesRequest{PageSize: 1}, &pb.ListRepositoriesResponse{}, "repositories?pageSize=1"},
		{"ModelService/ListVersions", &pb.ListVersionsRequest{Repository: repo}, &pb.ListVersionsResponse{}, "versions?repository=credit/scorer"},
		{"ModelService/GetVersion", &pb.GetVersionRequest{Repository: repo, Reference: string(s.model.Digest)}, &pb.GetVersionResponse{}, "version?repository=credit%2Fscorer&reference=" + string(s.model.Digest)},
		{"ModelService/ResolveTag", &pb.ResolveTagRequest{Repository: repo, Tag: "latest", AsOf: &pb.AsOf{Moment: &pb.AsOf_LogIndex{LogIndex: 2}}}, &pb.ResolveTagResponse{}, "resolve?repository=credit/scorer&tag=latest&asOf.logIndex=2"},
		{"ModelService/ListTagMoves", &pb.ListTagMovesRequest{Repository: repo, Tag: "latest"}, &pb.ListTagMovesResponse{}, "tag-moves?repository=credit/scorer&tag=latest"},
		{"ModelService/ListFacts", &pb.ListFactsRequest{Repository: repo, Reference: "1.4.0"}, &pb.ListFactsResponse{}, "facts?repository=credit/scorer&reference=1.4.0"},
		{"LineageService/GetLineage", &pb.GetLineageRequest{Repository: repo, Reference: "1.3.0", Direction: pb.Direction_DIRECTION_DOWNSTREAM, Depth: 3}, &pb.GetLineageResponse{}, "lineage?repository=credit/scorer&reference=1.3.0&direction=DIRECTION_DOWNSTREAM&depth=3"},
		{"EnvironmentService/ListEnvironments", &pb.ListEnvironmentsRequest{}, &pb.ListEnvironmentsResponse{}, "environments"},
		{"EnvironmentService/GetEnvironment", &pb.GetEnvironmentRequest{Name: "prod-eu", AsOf: &pb.AsOf{Moment: &pb.AsOf_Time{Time: timestamppb.New(s.deployedAt)}}}, &pb.GetEnvironmentResponse{}, "environments/prod-eu?as_of.time=" + at},
		{"EnvironmentService/ListDeployments", &pb.ListDeploymentsRequest{Environment: "prod-eu", At: timestamppb.New(s.deployedAt)}, &pb.ListDeploymentsResponse{}, "deployments?environment=prod-eu&at=" + at},
		{"LogService/GetCheckpoint", &pb.GetCheckpointRequest{}, &pb.GetCheckpointResponse{}, "log/checkpoint"},
		{"LogService/GetLeaf", &pb.GetLeafRequest{Index: 2}, &pb.GetLeafResponse{}, "log/leaves/2"},
		{"LogService/ListLeaves", &pb.ListLeavesRequest{About: string(s.model.Digest), PageSize: 3}, &pb.ListLeavesResponse{}, "log/leaves?pageSize=3&about=" + string(s.model.Digest)},
		{"LogService/GetInclusionProof", &pb.GetInclusionProofRequest{Index: 2}, &pb.GetInclusionProofResponse{}, "log/leaves/2/proof"},
		{"TrustService/GetTrust", &pb.GetTrustRequest{}, &pb.GetTrustResponse{}, "trust"},
		{"TrustService/GetTrustReview", &pb.GetTrustReviewRequest{}, &pb.GetTrustReviewResponse{}, "trust/review"},
		{"TrustService/GetStatusList", &pb.GetStatusListRequest{}, &pb.GetStatusListResponse{}, "status-list"},
		{"AccessService/GetPerson", &pb.GetPersonRequest{Id: "p-17"}, &pb.GetPersonResponse{}, "persons/p-17"},
		{"TrustService/GetPolicy", &pb.GetPolicyRequest{}, &pb.GetPolicyResponse{}, "policy"},
		{"AccessService/GetSelf", &pb.GetSelfRequest{}, &pb.GetSelfResponse{}, "self"},
		{"AccessService/ListTokens", &pb.ListTokensRequest{}, &pb.ListTokensResponse{}, "tokens"},
	} {
		if err := h.call("", "/assay.v1."+tc.method, tc.q, tc.a); err != nil {
			t.Errorf("%s: %v", tc.method, err)
			continue
		}
		if proto.Size(tc.a) == 0 {
			t.Errorf("%s: the answer is empty", tc.method)
		}
		resp, body := h.do("", http.MethodGet, "/api/v1/"+tc.path, "")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("GET %s: %s %v %s", tc.path, resp.Status, resp.Header, body)
			continue
		}
		over := tc.a.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal(body, over); err != nil {
			t.Errorf("GET %s: %v", tc.path, err)
		}
		if !proto.Equal(tc.a, over) {
			t.Errorf("%s: over gRPC\n%v\nover HTTP\n%v", tc.method, tc.a, over)
		}
		seen[tc.method] = true
	}
	for _, m := range methods(t) {
		if name := strings.TrimPrefix(m.name, "/assay.v1."); m.verb == http.MethodGet && !seen[name] {
			t.Errorf("%s is not compared", name)
		}
	}
}

// What an auditor asks: which version, what came of what, what ran where, may
// it run there, and prove it.
func TestTheStory(t *testing.T) {
	h := newHouse(t)
	s := h.tell()
	ctx := t.Context()
	models, environments := pb.NewModelServiceClient(h.conn), pb.NewEnvironmentServiceClient(h.conn)

	versions, err := models.ListVersions(ctx, &pb.ListVersionsRequest{Repository: repo})
	if err != nil {
		t.Fatal(err)
	}
	if v := versions.GetVersions(); len(v) != 2 || v[0].GetNumber() != 2 || v[0].GetDigest() != string(s.model.Digest) ||
		v[0].GetBornAs() != "1.4.0" || !slices.Equal(v[0].GetTags(), []string{"1.4.0", "latest"}) || !slices.Equal(v[1].GetTags(), []string{"1.3.0"}) {
		t.Errorf("versions %v", v)
	}
	version, err := models.GetVersion(ctx, &pb.GetVersionRequest{Repository: repo, Reference: "1.4.0"})
	if err != nil {
		t.Fatal(err)
	}
	if f := version.GetVersion().GetFiles(); len(f) != 1 || f[0].GetName() != "model.onnx" || f[0].GetDigest() != string(digest.FromString("weights")) || f[0].GetSize() != 7 {
		t.Errorf("files %v", f)
	}

	// As of the first hour, latest was the older version.
	latest := func(a *pb.AsOf) string {
		t.Helper()
		r, err := models.ResolveTag(ctx, &pb.ResolveTagRequest{Repository: repo, Tag: "latest", AsOf: a})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetDigest()
	}
	born := version.GetVersion()
	for _, tc := range []struct {
		a    *pb.AsOf
		want digest.Digest
	}{
		{nil, s.model.Digest},
		{&pb.AsOf{}, s.model.Digest},
		{&pb.AsOf{Moment: &pb.AsOf_Time{Time: born.GetBornAt()}}, s.model.Digest},
		{&pb.AsOf{Moment: &pb.AsOf_Time{Time: timestamppb.New(born.GetBornAt().AsTime().Add(-time.Nanosecond))}}, s.parent.Digest},
		{&pb.AsOf{Moment: &pb.AsOf_LogIndex{LogIndex: born.GetLogIndex()}}, s.model.Digest},
		{&pb.AsOf{Moment: &pb.AsOf_LogIndex{LogIndex: born.GetLogIndex() - 1}}, s.parent.Digest},
	} {
		if got := latest(tc.a); got != string(tc.want) {
			t.Errorf("as of %v latest was %s, want %s", tc.a, got, tc.want)
		}
	}
	moves, err := models.ListTagMoves(ctx, &pb.ListTagMovesRequest{Repository: repo, Tag: "latest"})
	if m := moves.GetMoves(); err != nil || len(m) != 2 || m[0].GetFrom() != "" || m[1].GetFrom() != string(s.parent.Digest) || m[1].GetReason() != "a test" {
		t.Errorf("moves %v, %v", m, err)
	}

	facts, err := models.ListFacts(ctx, &pb.ListFactsRequest{Repository: repo, Reference: "1.4.0"})
	if err != nil || len(facts.GetFacts()) != 4 || facts.GetSubject() != string(s.model.Digest) {
		t.Fatalf("facts %v, %v", facts, err)
	}
	for _, f := range facts.GetFacts() {
		if f.GetOutcome() != "verified" || f.GetIdentity() == "" || !json.Valid([]byte(f.GetPredicate())) {
			t.Errorf("fact %v", f)
		}
	}

	graph := func(reference string, d pb.Direction) *pb.GetLineageResponse {
		t.Helper()
		g, err := pb.NewLineageServiceClient(h.conn).GetLineage(ctx, &pb.GetLineageRequest{Repository: repo, Reference: reference, Direction: d})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	kinds := map[pb.NodeKind]int{}
	up := graph("1.4.0", pb.Direction_DIRECTION_UNSPECIFIED)
	ids := map[string]bool{}
	for _, n := range up.GetNodes() {
		kinds[n.GetKind()]++
		ids[n.GetId()] = true
	}
	want := map[pb.NodeKind]int{pb.NodeKind_NODE_KIND_MODEL: 2, pb.NodeKind_NODE_KIND_DATASET: 1, pb.NodeKind_NODE_KIND_CODE: 1, pb.NodeKind_NODE_KIND_TRAINING_RUN: 1}
	if !maps.Equal(kinds, want) || len(up.GetEdges()) != 4 {
		t.Errorf("upstream of the model: %v", up)
	}
	for _, e := range up.GetEdges() {
		if e.GetTier() != pb.Tier_TIER_VERIFIED || e.GetIdentity() != "provenance-team" || !ids[e.GetFrom()] || !ids[e.GetTo()] {
			t.Errorf("edge %v", e)
		}
	}
	// What another key says is shown, as signed and not believed.
	h.attach(s.parent, s.keys["release"], attest.Lineage{TrainingRun: &attest.TrainingRun{ID: "run-1"}, RecordedAt: h.clock()})
	if e := graph("1.3.0", pb.Direction_DIRECTION_UPSTREAM).GetEdges(); len(e) != 1 || e[0].GetTier() != pb.Tier_TIER_SIGNED || e[0].GetWhy() == "" || e[0].GetIdentity() != "" {
		t.Errorf("an unbelieved edge: %v", e)
	}
	if e := graph("1.3.0", pb.Direction_DIRECTION_DOWNSTREAM).GetEdges(); len(e) != 1 || e[0].GetFrom() != string(s.model.Digest) || e[0].GetRelation() != "revisionOf" {
		t.Errorf("downstream of the parent: %v", e)
	}

	env, err := environments.GetEnvironment(ctx, &pb.GetEnvironmentRequest{Name: "prod-eu"})
	if e := env.GetEnvironment(); err != nil || e.GetDigest() != string(s.environment) || e.GetTarget().GetUrl() != "http://one.example" ||
		e.GetLabels()["region"] != "eu-west-1" || e.GetFingerprint()["cpu.flags"].GetAssurance() != "observed" {
		t.Errorf("environment %v, %v", e, err)
	}
	ran := func(at time.Time) string {
		t.Helper()
		r, err := environments.ListDeployments(ctx, &pb.ListDeploymentsRequest{Environment: "prod-eu", At: timestamppb.New(at)})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetDeployments()) == 0 {
			return ""
		}
		return r.GetDeployments()[0].GetStatement()
	}
	if got := ran(s.deployedAt.Add(-time.Second)); got != "" {
		t.Errorf("before the deployment %s ran", got)
	}
	if got := ran(s.deployedAt); got != string(s.deployment) {
		t.Errorf("at the deployment %s ran", got)
	}
	// A place that nobody registered is not one in which nothing ran.
	if _, err := environments.ListDeployments(ctx, &pb.ListDeploymentsRequest{Environment: "prod-ue"}); status.Code(err) != codes.NotFound {
		t.Errorf("what ran in a misspelt environment: %v", err)
	}

	decide := func(reference string) (d *pb.DecideResponse) {
		t.Helper()
		d = &pb.DecideResponse{}
		resp, body := h.do("", http.MethodPost, "/api/v1/decisions", `{"repository":"credit/scorer","reference":"`+reference+`","environment":"prod-eu"}`, "X-Request-Id", "ticket-4711")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Request-Id") != "ticket-4711" {
			t.Fatalf("%s %v %s", resp.Status, resp.Header, body)
		}
		if err := protojson.Unmarshal(body, d); err != nil {
			t.Fatal(err)
		}
		if !d.GetDecision().GetAllow() && !regexp.MustCompile(`"allow": ?false`).Match(body) {
			t.Errorf("a deny does not say so: %s", body)
		}
		return d
	}
	allow := decide("1.4.0")
	if d := allow.GetDecision(); !d.GetAllow() || d.GetModel() != string(s.model.Digest) || d.GetEnvironmentDocument() != string(s.environment) || allow.GetRepeats() != 1 || allow.GetNoEvidence() {
		t.Errorf("decision on the model: %v", allow)
	}
	deny := decide("1.3.0")
	if d := deny.GetDecision(); d.GetAllow() || len(d.GetReasons()) == 0 || d.GetReasons()[0].GetRemedy() == "" || len(deny.GetEvidence()) != 1 || !deny.GetNoEvidence() {
		t.Errorf("decision on the parent: %v", deny)
	}

	// Offline: the proof needs the log's key and nothing else, and the leaf in
	// it names the decision by the digest of the bytes that were answered.
	log := pb.NewLogServiceClient(h.conn)
	checkpoint, err := log.GetCheckpoint(ctx, &pb.GetCheckpointRequest{})
	if err != nil || checkpoint.GetVerifierKey() != h.registry.LogKey() || checkpoint.GetOrigin() != "log.example/test" {
		t.Fatalf("checkpoint %v, %v", checkpoint, err)
	}
	tree, err := tlog.OpenCheckpoint([]byte(checkpoint.GetCheckpoint()), checkpoint.GetVerifierKey())
	if err != nil || tree.N != deny.GetLogIndex()+1 {
		t.Errorf("tree %v, %v", tree, err)
	}
	proof, err := log.GetInclusionProof(ctx, &pb.GetInclusionProofRequest{Index: deny.GetLogIndex()})
	if err != nil {
		t.Fatal(err)
	}
	proven, err := tlog.Verify([]byte(proof.GetProof()), checkpoint.GetVerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := log.GetLeaf(ctx, &pb.GetLeafRequest{Index: deny.GetLogIndex()})
	if err != nil || string(proven.Leaf) != string(leaf.GetLeaf().GetCanonical()) {
		t.Errorf("leaf %v, %v; proven %s", leaf, err, proven.Leaf)
	}
	if e := leaf.GetLeaf().GetEvent(); e.GetKind() != "decision" || e.GetOutcome() != "deny" || e.GetRequest() != "ticket-4711" ||
		!slices.Equal(e.GetDigests(), []string{string(digest.FromBytes(deny.GetCanonical()))}) || !slices.Contains(e.GetSubjects(), string(s.parent.Digest)) {
		t.Errorf("event %v", e)
	}
	about, err := log.ListLeaves(ctx, &pb.ListLeavesRequest{About: string(s.parent.Digest)})
	if err != nil || len(about.GetLeaves()) < 4 || about.GetLeaves()[len(about.GetLeaves())-1].GetIndex() != deny.GetLogIndex() {
		t.Errorf("leaves about the parent: %v, %v", about, err)
	}
	if e := about.GetLeaves()[0].GetEvent(); e.GetKind() != "manifest.put" || len(e.GetTags()) != 2 || e.GetVersion() != 1 || e.GetReasonHash() == "" {
		t.Errorf("the parent's push: %v", e)
	}
}

func TestTrustAndPolicy(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	c := pb.NewTrustServiceClient(h.conn)
	builtIn, err := c.GetTrust(ctx, &pb.GetTrustRequest{})
	if d := builtIn.GetTrust(); err != nil || d.GetYaml() != "" || d.GetDigest() == "" || d.LogIndex != nil || d.GetAppliedAt() != nil {
		t.Errorf("built-in trust %v, %v", d, err)
	}
	s := h.tell()
	now, err := c.GetTrust(ctx, &pb.GetTrustRequest{})
	if d := now.GetTrust(); err != nil || d.GetYaml() != trustFile(s.keys) || d.LogIndex == nil || d.GetAppliedAt() == nil || d.GetDigest() == builtIn.GetTrust().GetDigest() {
		t.Errorf("trust in force %v, %v", d, err)
	}
	yaml := "version: 1\nrequireRelease: true\nrequireLineage: false\nrequireCertificate: false\n"
	body, _ := json.Marshal(map[string]string{"yaml": yaml})
	resp, raw := h.do("", http.MethodPut, "/api/v1/policy", string(body))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, raw)
	}
	policy, err := c.GetPolicy(ctx, &pb.GetPolicyRequest{})
	if err != nil || policy.GetPolicy().GetYaml() != yaml {
		t.Errorf("policy in force %v, %v", policy, err)
	}
	again, err := c.SetPolicy(ctx, &pb.SetPolicyRequest{Yaml: yaml})
	if err != nil || again.GetPolicy().GetLogIndex() != policy.GetPolicy().GetLogIndex() {
		t.Errorf("the same policy again: %v, %v", again, err)
	}
	// A trust file takes effect on what is asked next: without anybody to
	// trust, what was allowed is not.
	allowed := func() bool {
		t.Helper()
		d, err := pb.NewGateServiceClient(h.conn).Decide(ctx, &pb.DecideRequest{Repository: repo, Reference: "1.4.0", Environment: "prod-eu"})
		if err != nil {
			t.Fatal(err)
		}
		if d.GetDecision().GetPolicyDigest() != policy.GetPolicy().GetDigest() {
			t.Errorf("decided under another policy: %v", d)
		}
		return d.GetDecision().GetAllow()
	}
	if !allowed() {
		t.Error("denied before")
	}
	if resp, raw := h.do("", http.MethodPut, "/api/v1/trust", `{"yaml":"version: 1\nidentities: []\n"}`); resp.StatusCode != http.StatusOK {
		t.Errorf("a trust file that trusts nobody: %s %s", resp.Status, raw)
	}
	if allowed() {
		t.Error("allowed when nobody is trusted")
	}
}

// A request that cannot be answered gets a code, a reason for programs, a
// sentence that names the thing, and changes nothing.
func TestBadRequests(t *testing.T) {
	h := newHouse(t)
	s := h.tell()
	ask := func(path string, query ...string) string {
		v := url.Values{}
		for i := 0; i < len(query); i += 2 {
			v.Add(query[i], query[i+1])
		}
		return "/api/v1/" + path + "?" + v.Encode()
	}
	gone := string(digest.FromString("gone"))
	for name, tc := range map[string]struct {
		as, verb, path, body string
		status               int
		reason, says         string
	}{
		"no repository":                 {"", "GET", ask("versions"), "", 400, "REQUEST_INVALID", "repository is missing"},
		"no reference":                  {"", "GET", ask("version", "repository", repo), "", 400, "REQUEST_INVALID", "reference is missing"},
		"no tag":                        {"", "GET", ask("resolve", "repository", repo), "", 400, "REQUEST_INVALID", "tag is missing"},
		"no digest":                     {"", "GET", ask("log/leaves"), "", 400, "REQUEST_INVALID", "about is missing"},
		"no environment":                {"", "GET", ask("deployments"), "", 400, "REQUEST_INVALID", "environment is missing"},
		"unknown repository":            {"", "GET", ask("versions", "repository", "credit/nothing"), "", 404, "NAME_UNKNOWN", "credit/nothing"},
		"bad repository":                {"", "GET", ask("versions", "repository", "Credit/../x"), "", 400, "NAME_INVALID", "Credit"},
		"repository of invalid UTF-8":   {"", "GET", "/api/v1/versions?repository=%ff%fe", "", 400, "NAME_INVALID", ""},
		"unknown tag":                   {"", "GET", ask("version", "repository", repo, "reference", "9.9.9"), "", 404, "MANIFEST_UNKNOWN", "9.9.9"},
		"unknown digest":                {"", "GET", ask("facts", "repository", repo, "reference", gone), "", 404, "MANIFEST_UNKNOWN", gone},
		"bad tag":                       {"", "GET", ask("tag-moves", "repository", repo, "tag", "-x"), "", 400, "TAG_INVALID", "-x"},
		"bad digest":                    {"", "GET", ask("log/leaves", "about", "sha256:xyz"), "", 400, "DIGEST_INVALID", "xyz"},
		"no version":                    {"", "GET", ask("version", "repository", repo, "reference", string(s.deployment)), "", 404, "UNKNOWN", "no model version"},
		"tag that is a digest":          {"", "GET", ask("resolve", "repository", repo, "tag", string(s.model.Digest)), "", 400, "REQUEST_INVALID", "is a digest"},
		"tag before its time":           {"", "GET", ask("resolve", "repository", repo, "tag", "latest", "asOf.time", "2026-01-01T00:00:00Z"), "", 404, "MANIFEST_UNKNOWN", "latest"},
		"as of log index 0":             {"", "GET", ask("resolve", "repository", repo, "tag", "latest", "asOf.logIndex", "0"), "", 400, "REQUEST_INVALID", "at least 1"},
		"as of two moments":             {"", "GET", ask("resolve", "repository", repo, "tag", "latest", "asOf.logIndex", "3", "asOf.time", "2026-03-03T00:00:00Z"), "", 400, "REQUEST_INVALID", "oneof"},
		"as of no time":                 {"", "GET", ask("environments/prod-eu", "asOf.time", ""), "", 400, "REQUEST_INVALID", "time"},
		"as of Go's zero time":          {"", "GET", ask("environments/prod-eu", "asOf.time", "0001-01-01T00:00:00Z"), "", 400, "REQUEST_INVALID", "1970"},
		"time before 1970":              {"", "GET", ask("deployments", "environment", "prod-eu", "at", "1960-01-01T00:00:00Z"), "", 400, "REQUEST_INVALID", "1970"},
		"time after 2261":               {"", "GET", ask("deployments", "environment", "prod-eu", "known.time", "2300-01-01T00:00:00Z"), "", 400, "REQUEST_INVALID", "2261"},
		"time that is none":             {"", "GET", ask("deployments", "environment", "prod-eu", "at", "yesterday"), "", 400, "REQUEST_INVALID", "yesterday"},
		"misspelt parameter":            {"", "GET", ask("deployments", "environment", "prod-eu", "att", "2026-03-03T00:00:00Z"), "", 400, "REQUEST_INVALID", `"att"`},
		"misspelt parameter, deeper":    {"", "GET", ask("deployments", "environment", "prod-eu", "known.tim", "2026-03-03T00:00:00Z"), "", 400, "REQUEST_INVALID", `"known.tim"`},
		"parameter below a scalar":      {"", "GET", ask("deployments", "environment.name", "prod-eu"), "", 400, "REQUEST_INVALID", "environment"},
		"parameter given twice":         {"", "GET", ask("versions", "repository", repo, "repository", "other"), "", 400, "REQUEST_INVALID", "repository"},
		"broken query":                  {"", "GET", "/api/v1/versions?repository=%zz", "", 400, "REQUEST_INVALID", "query"},
		"page of negative size":         {"", "GET", ask("versions", "repository", repo, "pageSize", "-1"), "", 400, "REQUEST_INVALID", "-1"},
		"page size that is no number":   {"", "GET", ask("repositories", "pageSize", "many"), "", 400, "REQUEST_INVALID", "many"},
		"page token of another list":    {"", "GET", ask("versions", "repository", repo, "pageToken", "77"), "", 400, "REQUEST_INVALID", "77"},
		"depth too deep":                {"", "GET", ask("lineage", "repository", repo, "reference", "1.4.0", "depth", "33"), "", 400, "REQUEST_INVALID", "33"},
		"direction that is none":        {"", "GET", ask("lineage", "repository", repo, "reference", "1.4.0", "direction", "7"), "", 400, "REQUEST_INVALID", "7"},
		"unknown environment":           {"", "GET", ask("environments/staging"), "", 404, "UNKNOWN", "staging"},
		"unknown environment's history": {"", "GET", ask("deployments", "environment", "staging"), "", 404, "UNKNOWN", "staging"},
		"leaf that is not there":        {"", "GET", ask("log/leaves/9999"), "", 404, "UNKNOWN", "9999"},
		"leaf of negative index":        {"", "GET", ask("log/leaves/-1/proof"), "", 404, "UNKNOWN", "-1"},
		"leaf of no index":              {"", "GET", ask("log/leaves/first"), "", 400, "REQUEST_INVALID", "first"},
		"decision with a misspelt field": {"", "POST", "/api/v1/decisions", `{"repository":"credit/scorer","reference":"1.4.0","enviroment":"prod-eu"}`,
			400, "REQUEST_INVALID", "enviroment"},
		"decision without an environment": {"", "POST", "/api/v1/decisions", `{"repository":"credit/scorer","reference":"1.4.0"}`, 400, "REQUEST_INVALID", "environment is missing"},
		"decision that is not JSON":       {"", "POST", "/api/v1/decisions", `reference=1.4.0`, 400, "REQUEST_INVALID", ""},
		"decision in the query":           {"", "POST", ask("decisions", "repository", repo, "reference", "1.4.0", "environment", "prod-eu"), ``, 400, "REQUEST_INVALID", "body"},
		"decision in both":                {"", "POST", ask("decisions", "environment", "dev"), `{"repository":"credit/scorer","reference":"1.4.0","environment":"prod-eu"}`, 400, "REQUEST_INVALID", "body"},
		"environment in the query":        {"", "GET", ask("environments/prod-eu", "name", "dev"), "", 400, "REQUEST_INVALID", "name is in the path"},
		"trust file that is none":         {"", "PUT", "/api/v1/trust", `{"yaml":"version: 2\n"}`, 400, "DOCUMENT_INVALID", "version"},
		"empty trust file":                {"", "PUT", "/api/v1/trust", `{}`, 400, "REQUEST_INVALID", "yaml is missing"},
		"trust file over the limit":       {"", "PUT", "/api/v1/trust", `{"yaml":"` + strings.Repeat("#", maxBody) + `"}`, 400, "REQUEST_INVALID", "too large"},
		"policy that leaves something out": {"", "PUT", "/api/v1/policy", `{"yaml":"version: 1\nrequireRelease: true\n"}`,
			400, "DOCUMENT_INVALID", "requireLineage"},
		"decision by a reader":    {"reader", "POST", "/api/v1/decisions", `{"repository":"credit/scorer","reference":"1.4.0","environment":"prod-eu"}`, 403, "DENIED", "user:r"},
		"trust by a reader":       {"reader", "PUT", "/api/v1/trust", `{"yaml":"version: 1\n"}`, 403, "DENIED", ""},
		"log by a reader":         {"reader", "GET", "/api/v1/log/checkpoint", "", 403, "DENIED", ""},
		"versions by a stranger":  {"stranger", "GET", ask("versions", "repository", repo), "", 403, "DENIED", "credit/scorer"},
		"what is not there":       {"", "GET", "/api/v1/models", "", 404, "NO_SUCH_METHOD", "/api/v1/models"},
		"environment of no name":  {"", "GET", "/api/v1/environments/", "", 400, "REQUEST_INVALID", "name is missing"},
		"method that is not here": {"", "DELETE", "/api/v1/trust", "", 405, "NO_SUCH_METHOD", "DELETE"},
		"method in a form":        {"", "POST", "/api/v1/versions", "", 405, "NO_SUCH_METHOD", "POST"},
	} {
		t.Run(name, func(t *testing.T) {
			rows, keys := h.db.Rows(), h.blobs.Keys()
			headers := []string{"X-Http-Method-Override", "PUT"}
			if tc.verb == "POST" && tc.body == "" {
				headers = append(headers, "Content-Type", "application/x-www-form-urlencoded")
			}
			resp, body := h.do(tc.as, tc.verb, tc.path, tc.body, headers...)
			var st struct {
				Code    int
				Message string
				Details []struct{ Reason, Domain string }
			}
			if err := json.Unmarshal(body, &st); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			reason := ""
			for _, d := range st.Details {
				reason = d.Reason
			}
			if resp.StatusCode != tc.status || reason != tc.reason || !strings.Contains(st.Message, tc.says) || st.Message == "" || st.Code == 0 {
				t.Errorf("%s %s\nwant %d %s and a message with %q", resp.Status, body, tc.status, tc.reason, tc.says)
			}
			if !maps.Equal(rows, h.db.Rows()) || !slices.Equal(keys, h.blobs.Keys()) {
				t.Error("something was changed")
			}
		})
	}
}

// Somebody with nothing but the tiles and the log's key computes the same tree
// from the leaves.
func TestTiles(t *testing.T) {
	h := newHouse(t)
	h.tell()
	for i := range 300 {
		h.push(repo, "", "w", fmt.Sprintf("t%d", i))
	}
	get := func(path string) []byte {
		t.Helper()
		resp, body := h.do("", http.MethodGet, "/log/"+path, "")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s %s", path, resp.Status, body)
		}
		return body
	}
	tree, err := tlog.OpenCheckpoint(get("checkpoint"), h.registry.LogKey())
	if err != nil || tree.N <= tlog.TileWidth {
		t.Fatalf("tree of %d leaves, %v", tree.N, err)
	}
	rest := tree.N - tlog.TileWidth
	leaves, err := tlog.Entries(append(get("tile/entries/000"), get(fmt.Sprintf("tile/entries/001.p/%d", rest))...))
	if err != nil || int64(len(leaves)) != tree.N {
		t.Fatalf("%d leaves, %v", len(leaves), err)
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (list []tlog.Hash, err error) {
		for _, i := range indexes {
			list = append(list, stored[i])
		}
		return list, nil
	})
	level0 := append(get("tile/0/000"), get(fmt.Sprintf("tile/0/001.p/%d", rest))...)
	for i, leaf := range leaves {
		_, hashes, err := tlog.StoredHashes(int64(i), leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		if want := tlog.LeafHash(leaf); !slices.Equal(want[:], level0[32*i:32*i+32]) {
			t.Fatalf("leaf %d is not what the tile has", i)
		}
	}
	if root, err := tlog.TreeHash(tree.N, reader); err != nil || root != tree.Hash {
		t.Errorf("root %v, %v; the checkpoint says %v", root, err, tree.Hash)
	}
	for path, tc := range map[string]struct {
		as, verb string
		status   int
	}{
		"tile/0/002":       {"", "GET", 404}, // not that large yet
		"tile/entries/001": {"", "GET", 404},
		"tile/0/000/..":    {"", "GET", 404},
		"tile/0/1":         {"", "GET", 404},
		"nothing":          {"", "GET", 404},
		"checkpoint":       {"reader", "GET", 403},
		"tile/0/000":       {"reader", "GET", 403},
		"tile/1/000.p/1":   {"", "POST", 405},
		"tile/entries/000": {"nobody", "GET", 401},
		"tile/0/001.p/1":   {"", "HEAD", 200},
	} {
		if resp, body := h.do(tc.as, tc.verb, "/log/"+path, ""); resp.StatusCode != tc.status {
			t.Errorf("%s %s as %q: %s %s", tc.verb, path, tc.as, resp.Status, body)
		}
	}
	if resp, _ := h.do("", http.MethodGet, "/log/tile/0/000", ""); !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || !strings.Contains(resp.Header.Get("Cache-Control"), "private") {
		t.Errorf("a tile is cached as %q", resp.Header.Get("Cache-Control"))
	}
}

// Pages of any size, one after another, are the whole list.
func TestPages(t *testing.T) {
	h := newHouse(t)
	h.tell()
	for i := range 7 {
		h.push(repo, "", fmt.Sprintf("weights %d", i), fmt.Sprintf("2.0.%d", i), "latest")
		h.push(fmt.Sprintf("other/m%d", i), "", "w", "1.0.0")
	}
	lists := map[string]func(size int32, token string) (ids []string, next string, err error){
		"versions": func(size int32, token string) (ids []string, next string, err error) {
			a, err := pb.NewModelServiceClient(h.conn).ListVersions(t.Context(), &pb.ListVersionsRequest{Repository: repo, PageSize: size, PageToken: token})
			for _, v := range a.GetVersions() {
				ids = append(ids, v.GetDigest())
			}
			return ids, a.GetNextPageToken(), err
		},
		"repositories": func(size int32, token string) (ids []string, next string, err error) {
			a, err := pb.NewModelServiceClient(h.conn).ListRepositories(t.Context(), &pb.ListRepositoriesRequest{PageSize: size, PageToken: token})
			for _, r := range a.GetRepositories() {
				ids = append(ids, r.GetName())
			}
			return ids, a.GetNextPageToken(), err
		},
		"tag moves": func(size int32, token string) (ids []string, next string, err error) {
			a, err := pb.NewModelServiceClient(h.conn).ListTagMoves(t.Context(), &pb.ListTagMovesRequest{Repository: repo, Tag: "latest", PageSize: size, PageToken: token})
			for _, m := range a.GetMoves() {
				ids = append(ids, fmt.Sprint(m.GetLogIndex()))
			}
			return ids, a.GetNextPageToken(), err
		},
		"facts": func(size int32, token string) (ids []string, next string, err error) {
			a, err := pb.NewModelServiceClient(h.conn).ListFacts(t.Context(), &pb.ListFactsRequest{Repository: repo, Reference: "1.4.0", PageSize: size, PageToken: token})
			for _, f := range a.GetFacts() {
				ids = append(ids, f.GetReferrer())
			}
			return ids, a.GetNextPageToken(), err
		},
	}
	for name, list := range lists {
		whole, next, err := list(0, "")
		if err != nil || next != "" || len(whole) < 4 {
			t.Fatalf("%s: %v, %q, %v", name, whole, next, err)
		}
		for size := int32(1); size <= int32(len(whole))+1; size++ {
			var got []string
			for token := ""; ; {
				ids, next, err := list(size, token)
				if err != nil {
					t.Fatal(err)
				}
				if len(ids) == 0 || len(ids) > int(size) {
					t.Fatalf("%s: a page of %d when %d were asked for", name, len(ids), size)
				}
				got = append(got, ids...)
				if token = next; token == "" {
					break
				}
			}
			if !slices.Equal(got, whole) {
				t.Errorf("%s by %d: %v, want %v", name, size, got, whole)
			}
		}
	}
}

// A page stays below what a client takes, and yet goes on.
func TestPagesAreNotTooLarge(t *testing.T) {
	var all []string
	for i := range 40 {
		all = append(all, fmt.Sprint(i))
	}
	convert := func(id string) (*pb.Fact, error) {
		return &pb.Fact{Referrer: id, Predicate: strings.Repeat("x", maxPageBytes/8)}, nil
	}
	var got []string
	for token := ""; ; {
		list, next, err := page(&pb.ListFactsRequest{PageToken: token}, all, func(id string) string { return id }, convert)
		if err != nil {
			t.Fatal(err)
		}
		size := proto.Size(&pb.ListFactsResponse{Facts: list})
		if len(list) == 0 || size > 4<<20 {
			t.Fatalf("a page of %d elements and %d bytes", len(list), size)
		}
		for _, f := range list {
			got = append(got, f.GetReferrer())
		}
		if token = next; token == "" {
			break
		}
	}
	if !slices.Equal(got, all) {
		t.Errorf("%v", got)
	}
}

// A full disk, a storage that failed, and a registry that is shutting down
// each have their code; what is ours alone is logged and not told.
func TestTrouble(t *testing.T) {
	decision := `{"repository":"credit/scorer","reference":"1.3.0","environment":"prod-eu"}`
	serving := func(h *house) healthpb.HealthCheckResponse_ServingStatus {
		a, err := healthpb.NewHealthClient(h.conn).Check(h.t.Context(), &healthpb.HealthCheckRequest{Service: "assay.v1.GateService"})
		if err != nil {
			h.t.Error(err)
		}
		return a.GetStatus()
	}
	for name, tc := range map[string]struct {
		break_ func(*house, story)
		status int
		reason string
		grpc   codes.Code
		serves bool
	}{
		"full disk":      {func(h *house, _ story) { h.db.Inject(store.FailNoSpace) }, 507, "NO_SPACE", codes.ResourceExhausted, true},
		"failed storage": {func(h *house, _ story) { h.db.Inject(store.FailLost) }, 503, "NOT_READY", codes.Unavailable, false},
		"shutting down":  {func(h *house, _ story) { h.registry.Close() }, 503, "SHUTTING_DOWN", codes.Unavailable, true},
		"damaged row": {func(h *house, s story) {
			for k := range h.db.Rows() {
				if strings.HasPrefix(k, "held\x00"+repo) && strings.HasSuffix(k, string(s.parent.Digest)) {
					h.db.SetRow(k, []byte("{secret"))
				}
			}
		}, 500, "INTERNAL", codes.Internal, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			s := h.tell()
			if got := serving(h); got != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("before: %s", got)
			}
			tc.break_(h, s)
			resp, body := h.do("", http.MethodPost, "/api/v1/decisions", decision)
			if resp.StatusCode != tc.status || !strings.Contains(string(body), `"`+tc.reason+`"`) || (tc.status == 503) != (resp.Header.Get("Retry-After") != "") {
				t.Errorf("%s %v %s", resp.Status, resp.Header, body)
			}
			if strings.Contains(string(body), "secret") || strings.Contains(string(body), "row") {
				t.Errorf("the caller is told %s", body)
			}
			if tc.status == 500 && !strings.Contains(h.logged(), "is damaged") {
				t.Errorf("the log does not say what happened:\n%s", h.logged())
			}
			if got := serving(h) == healthpb.HealthCheckResponse_SERVING; got != tc.serves {
				t.Errorf("after: serving is %v", got)
			}
			if name == "full disk" {
				h.db.Inject(store.FailNoSpace) // it fails one write each
			}
			err := h.call("", pb.GateService_Decide_FullMethodName, &pb.DecideRequest{Repository: repo, Reference: "1.3.0", Environment: "prod-eu"}, &pb.DecideResponse{})
			if status.Code(err) != tc.grpc {
				t.Errorf("over gRPC: %v", err)
			}
		})
	}
}

// A panic is the end of one call only.
func TestPanics(t *testing.T) {
	h := newHouse(t)
	s := newServer(Options{Registry: h.registry})
	ctx := contextWith(t, access.Anonymous(true))
	a, err := answer(ctx, s, &pb.GetTrustRequest{}, func(access.Actor) (*pb.GetTrustResponse, error) { panic("secret") })
	if a != nil || status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, %v", a, err)
	}
}

func TestRequestIDs(t *testing.T) {
	h := newHouse(t)
	for sent, kept := range map[string]bool{"ticket-1.2_3": true, "": false, "with space": false, strings.Repeat("x", 65): false, "naïve": false} {
		resp, _ := h.do("", http.MethodGet, "/api/v1/repositories", "", "X-Request-Id", sent)
		if got := resp.Header.Get("X-Request-Id"); got == "" || (got == sent) != kept {
			t.Errorf("HTTP: sent %q, got %q", sent, got)
		}
		if sent == "naïve" {
			continue // gRPC metadata is ASCII
		}
		var md metadata.MD
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", sent)
		if _, err := pb.NewModelServiceClient(h.conn).ListRepositories(ctx, &pb.ListRepositoriesRequest{}, grpc.Header(&md)); err != nil {
			t.Error(err)
		}
		if got := strings.Join(md.Get("x-request-id"), ","); got == "" || (got == sent) != kept {
			t.Errorf("gRPC: sent %q, got %q", sent, got)
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	h := newHouse(t)
	c := healthpb.NewHealthClient(h.conn)
	if a, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || a.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "assay.v1.NoService"}); status.Code(err) != codes.NotFound {
		t.Errorf("a service that is not there: %v", err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(h.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	a, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range a.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, m := range methods(t) {
		if service := strings.Split(m.name, "/")[1]; !slices.Contains(names, service) {
			t.Errorf("reflection lists %v and not %s", names, service)
		}
	}
}

// The OpenAPI document that is served speaks of every method, and of nothing
// else.
func TestOpenAPI(t *testing.T) {
	h := newHouse(t)
	resp, body := h.do("", http.MethodGet, "/api/v1/openapi.json", "")
	if resp.StatusCode != http.StatusOK || string(body) != string(openapi.OpenAPI) {
		t.Fatalf("%s %s", resp.Status, body)
	}
	var doc struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, operations := range doc.Paths {
		n += len(operations)
	}
	all := methods(t)
	if n != len(all) {
		t.Errorf("%d operations for %d methods", n, len(all))
	}
	for _, m := range all {
		path := strings.ReplaceAll(m.path, "=**", "")
		want := strings.ReplaceAll(strings.TrimPrefix(m.name, "/assay.v1."), "/", "_")
		if got := doc.Paths[path][strings.ToLower(m.verb)].OperationID; got != want {
			t.Errorf("%s %s is %q, want %q", m.verb, path, got, want)
		}
	}
}

// Every error that the registry names has a row in the table.
func TestTheTableIsWhole(t *testing.T) {
	named := regexp.MustCompile(`(?m)^(?:var)?\s+(Err[A-Z]\w*)\s+=`)
	rows := read(t, "errors.go")
	n := 0
	for pkg, files := range map[string][]string{"registry": glob(t, "../*.go"), "access": glob(t, "../access/*.go")} {
		for _, file := range files {
			for _, m := range named.FindAllStringSubmatch(read(t, file), -1) {
				n++
				if !strings.Contains(rows, "{"+pkg+"."+m[1]+", ") {
					t.Errorf("%s.%s of %s is not in the table", pkg, m[1], file)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d errors were found", n)
	}
}

// What this room may lean on.
func TestArrows(t *testing.T) {
	allowed := map[string]bool{
		"github.com/assay-dev/assay/registry": true, "github.com/assay-dev/assay/registry/access": true,
		"github.com/assay-dev/assay/registry/tlog": true, // to read the path of a tile
		"github.com/assay-dev/assay/proto":         true, "github.com/assay-dev/assay/proto/assay/v1": true,
	}
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if strings.HasPrefix(p, "github.com/assay-dev/assay/") && !allowed[p] {
			t.Errorf("registry/rpc imports %s: a transport knows the heart and its own wire, and neither storage nor other transports", p)
		}
	}
}

// Only what is answered is declared: in a registry where much has happened,
// every field of every answer is filled by something.
func TestEveryFieldIsAnswered(t *testing.T) {
	h := newHouse(t)
	s := h.tell()
	// A parent that is unbelieved, a tag that is gone, a model that may not
	// run, and more than fits on a page of one.
	h.attach(s.parent, s.keys["release"], attest.Lineage{TrainingRun: &attest.TrainingRun{ID: "run-1"}, RecordedAt: h.clock()})
	h.environment("staging", "http://two.example")
	h.push(repo, "", "a try", "tmp")
	if err := h.registry.DeleteTag(t.Context(), access.Anonymous(true), repo, "tmp"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.registry.SetPolicy(t.Context(), access.Anonymous(true), []byte("version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\n")); err != nil {
		t.Fatal(err)
	}
	// Something is withdrawn, somebody approves who is not required, and the
	// trust file changes so that a statement flips.
	bad := h.push(repo, "", "bad weights", "0.1.0")
	h.attach(bad, s.keys["withdrawal"], attest.Withdrawal{Reason: "recall", WithdrawnAt: h.clock(), StatedBy: "risk"})
	person, err := h.registry.EnrollPerson(t.Context(), access.Anonymous(true), "p-17", "Ann Example")
	if err != nil {
		t.Fatal(err)
	}
	h.reviewed()
	less := maps.Clone(s.keys)
	less[verify.Withdrawal], less[verify.Deployment] = less[verify.Deployment], less[verify.Withdrawal]
	if _, err := h.registry.SetTrust(t.Context(), access.Anonymous(true), []byte(trustFile(less))); err != nil {
		t.Fatal(err)
	}
	h.reviewed()
	if _, err := h.registry.SetTrust(t.Context(), access.Anonymous(true), []byte(trustFile(s.keys))); err != nil {
		t.Fatal(err)
	}
	h.reviewed()
	approvals := "version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\nrequireApprovals: 1\n"
	first, second := h.token(), h.token()
	// Garbage of every kind, and damage: an orphan whose lease is over, an
	// upload that rests, bytes that nothing names, and two blobs whose bytes
	// are gone or changed.
	h.garbage()
	gone, changed := h.keyOf("gone"), h.keyOf("changed")
	if err := h.blobs.Remove(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	h.blobs.Corrupt(changed, 0)
	h.advance(25 * time.Hour)

	filled := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			filled[f.FullName()] = true
			switch {
			case f.IsMap():
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					if f.MapValue().Message() != nil {
						walk(v.Message())
					}
					return true
				})
			case f.IsList() && f.Message() != nil:
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			case f.Message() != nil && !f.IsList():
				walk(v.Message())
			}
			return true
		})
	}
	for _, q := range []struct{ verb, path, body string }{
		{"GET", "repositories?pageSize=1", ""},
		{"GET", "versions?pageSize=1&repository=" + repo, ""},
		{"GET", "version?reference=1.4.0&repository=" + repo, ""},
		{"GET", "resolve?tag=latest&repository=" + repo, ""},
		{"GET", "tag-moves?tag=latest&pageSize=1&repository=" + repo, ""},
		{"GET", "tag-moves?tag=tmp&repository=" + repo, ""},
		{"GET", "tag-moves?tag=latest&repository=" + repo, ""},
		{"GET", "facts?reference=1.4.0&pageSize=1&repository=" + repo, ""},
		{"GET", "facts?reference=1.3.0&repository=" + repo, ""},
		{"GET", "lineage?reference=1.4.0&repository=" + repo, ""},
		{"GET", "lineage?reference=1.4.0&depth=1&repository=" + repo, ""},
		{"GET", "environments?pageSize=1", ""},
		{"GET", "environments/prod-eu", ""},
		{"GET", "deployments?environment=prod-eu", ""},
		{"POST", "decisions", `{"repository":"credit/scorer","reference":"1.4.0","environment":"prod-eu"}`},
		{"POST", "decisions", `{"repository":"credit/scorer","reference":"1.3.0","environment":"prod-eu"}`},
		{"PUT", "policy", string(must(json.Marshal(map[string]string{"yaml": approvals})))},
		{"POST", "decisions", `{"repository":"credit/scorer","reference":"1.4.0","environment":"prod-eu","breakGlass":"the approver is ill"}`},
		{"POST", "trust/test", string(must(json.Marshal(map[string]string{"yaml": trustFile(less)})))},
		{"GET", "trust/review", ""},
		{"GET", "status-list", ""},
		{"GET", "persons/p-17", ""},
		{"POST", "persons", `{"id":"p-18","name":"Bob Example"}`},
		{"POST", "persons/p-18/erase", `{}`},
		{"GET", fmt.Sprintf("log/leaves/%d", person.LogIndex), ""},
		{"GET", "log/checkpoint", ""},
		{"GET", "log/leaves/0/proof", ""},
		{"GET", "log/leaves/2", ""},
		{"GET", "log/leaves?pageSize=1&about=" + string(s.model.Digest), ""},
		{"GET", "log/leaves?about=" + string(s.model.Digest), ""},
		{"GET", "log/leaves?about=" + string(digest.FromString("a try")), ""},
		{"GET", "log/leaves?about=" + string(s.parent.Digest), ""},
		{"GET", "trust", ""},
		{"GET", "policy", ""},
		{"GET", "self", ""},
		{"POST", "tokens", `{"name":"ci","grants":[{"role":"pusher","repositories":"credit/**"}],"ttl":"3600s"}`},
		{"POST", "tokens/" + first.ID + "/revoke", "{}"},
		{"POST", "tokens/" + second.ID + "/revoke", "{}"},
		{"GET", "tokens?pageSize=1", ""},
		{"POST", "maintenance/collect", `{"dryRun":true}`},
		{"POST", "maintenance/collect", `{}`},
		{"POST", "maintenance/scrub", `{"budgetBytes":"1"}`},
		{"POST", "maintenance/scrub", `{"budgetBytes":"1000000"}`},
		{"PUT", "trust", string(must(json.Marshal(map[string]string{"yaml": trustFile(s.keys)})))},
		{"PUT", "policy", `{"yaml":"version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\n"}`},
	} {
		resp, body := h.do("", q.verb, "/api/v1/"+q.path, q.body)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %s %s", q.verb, q.path, resp.Status, body)
		}
		a := dynamicpb.NewMessage(answerOf(t, q.verb, q.path))
		if err := protojson.Unmarshal(body, a); err != nil {
			t.Fatal(err)
		}
		walk(a)
	}
	// What this story has none of, and why that is all right.
	elsewhere := map[protoreflect.FullName]string{
		"assay.v1.Version.annotations":                     "these models have none",
		"assay.v1.Target.version":                          "this environment is asked for whatever it serves",
		"assay.v1.ListDeploymentsResponse.next_page_token": "there is one deployment",
		"assay.v1.CollectResponse.more_blobs":              "there is not that much garbage",
		"assay.v1.DecideResponse.incomplete":               "all of its evidence can be read",
	}
	seen := map[protoreflect.FullName]bool{}
	var declared func(m protoreflect.MessageDescriptor)
	declared = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || m.ParentFile().Package() != "assay.v1" {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if !m.IsMapEntry() && filled[f.FullName()] == (elsewhere[f.FullName()] != "") {
				t.Errorf("%s: filled is %v", f.FullName(), filled[f.FullName()])
			}
			if f.Message() != nil {
				declared(f.Message())
			}
		}
	}
	for _, m := range methods(t) {
		declared(m.out)
	}
}

// answerOf is the type of the answer to a request.
func answerOf(t *testing.T, verb, path string) protoreflect.MessageDescriptor {
	t.Helper()
	path, _, _ = strings.Cut("/api/v1/"+path, "?")
	for _, m := range methods(t) {
		re := regexp.MustCompile(`\{[^}]+\}`).ReplaceAllString(m.path, "[^/]+")
		if m.verb == verb && regexp.MustCompile("^"+re+"$").MatchString(path) {
			return m.out
		}
	}
	t.Fatalf("no method is for %s %s", verb, path)
	return nil
}

func must(raw []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return raw
}

// Whatever is sent, the answer is JSON, says what is wrong with the request,
// and is never the server's own failure.
func FuzzGateway(f *testing.F) {
	f.Add("GET", "versions", "repository=credit/scorer&pageSize=2", "")
	f.Add("GET", "lineage", "repository=credit/scorer&reference=1.4.0&direction=2&depth=-1", "")
	f.Add("GET", "environments/prod-eu", "as_of.time=2026-03-03T00:00:00Z&asOf[x]=1", "")
	f.Add("GET", "deployments", "environment=prod-eu&at=9999-12-31T23:59:59.999999999Z&known.logIndex=9223372036854775807", "")
	f.Add("GET", "log/leaves/-9223372036854775808/proof", "", "")
	f.Add("GET", "log/leaves", "about=sha256:&pageToken=%00", "")
	f.Add("POST", "decisions", "", `{"repository":"credit/scorer","reference":"1.4.0","environment":"prod-eu"}`)
	f.Add("PUT", "trust", "", `{"yaml":"version: 1\nidentities: [{}]\n"}`)
	f.Add("PUT", "policy", "", `{"yaml":"&a [*a]"}`)
	h := newHouse(f)
	h.tell()
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://assay.example/api/v1/", strings.NewReader(body))
		if err != nil {
			return // it is no HTTP method
		}
		r.URL.Path, r.URL.RawQuery = r.URL.Path+path, query
		w := httptest.NewRecorder()
		h.handler.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 {
			return // the multiplexer cleans the path
		}
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %q ? %q %q: %d %s\n%s", method, path, query, body, w.Code, w.Body, h.logged())
		}
	})
}

// What one call costs, over each transport.
func BenchmarkGetVersion(b *testing.B) {
	h := newHouse(b)
	h.push(repo, "", "weights", "1.4.0")
	b.Run("grpc", func(b *testing.B) {
		c := pb.NewModelServiceClient(h.conn)
		for b.Loop() {
			if _, err := c.GetVersion(b.Context(), &pb.GetVersionRequest{Repository: repo, Reference: "1.4.0"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("http", func(b *testing.B) {
		for b.Loop() {
			if resp, body := h.do("", http.MethodGet, "/api/v1/version?reference=1.4.0&repository="+repo, ""); resp.StatusCode != http.StatusOK {
				b.Fatalf("%s %s", resp.Status, body)
			}
		}
	})
}
