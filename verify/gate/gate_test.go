package gate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	. "github.com/assay-dev/assay/verify/gate"
)

var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	model  = digest.FromString("model")
	parent = digest.FromString("parent")
	env    = digest.FromString("environment")
)

// A record is signed statements in memory: a verify.Source.
type record struct {
	t       testing.TB
	keys    map[verify.Role]*verify.Key
	trust   *verify.Trust
	subject map[digest.Digest][]ocispec.Descriptor
	content map[digest.Digest][]byte
}

func newRecord(t testing.TB) *record {
	r := &record{t: t, keys: map[verify.Role]*verify.Key{}, subject: map[digest.Digest][]ocispec.Descriptor{}, content: map[digest.Digest][]byte{}}
	yaml := "version: 1\nidentities:\n"
	for _, role := range verify.Roles {
		k, err := verify.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		r.keys[role] = k
		yaml += fmt.Sprintf("- id: %s-team\n  roles: [%s]\n  repositories: ['**']\n  publicKey: |\n    %s\n", role, role,
			strings.ReplaceAll(strings.TrimSpace(string(k.PublicPEM())), "\n", "\n    "))
	}
	var err error
	if r.trust, err = verify.ParseTrust([]byte(yaml)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *record) Referrers(_ context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	return r.subject[d], nil
}

func (r *record) Fetch(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	raw, ok := r.content[d.Digest]
	if !ok {
		return nil, fmt.Errorf("no %s", d.Digest)
	}
	return raw, nil
}

func (r *record) attach(role verify.Role, subject digest.Digest, statement []byte, predicateType string) digest.Digest {
	r.t.Helper()
	b, err := verify.SignStatement(r.t.Context(), r.keys[role], statement)
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}, b, predicateType, now)
	if err != nil {
		r.t.Fatal(err)
	}
	r.content[ref.Descriptor.Digest], r.content[ref.Layer.Digest] = ref.Manifest, ref.Signed
	desc := ref.Descriptor
	desc.Annotations = map[string]string{attest.AnnotationPredicate: predicateType}
	r.subject[subject] = append(r.subject[subject], desc)
	return desc.Digest
}

func (r *record) state(role verify.Role, subject digest.Digest, p attest.Predicate) digest.Digest {
	r.t.Helper()
	s, err := attest.NewStatement(subject, p)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.attach(role, subject, s, p.PredicateType())
}

func (r *record) release(role verify.Role) digest.Digest {
	r.t.Helper()
	s, err := attest.Marshal(attest.Statement{Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(model)}}, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}")})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.attach(role, model, s, attest.PredicateSignature)
}

func lineage(datasets bool) attest.Lineage {
	l := attest.Lineage{
		Parents: []attest.Parent{{Relation: attest.RevisionOf, Resource: attest.Resource{Digest: attest.Digests(parent)}}},
		Code:    []attest.Code{}, Datasets: []attest.Dataset{}, RecordedAt: now,
	}
	if datasets {
		l.Datasets = append(l.Datasets, attest.Dataset{Relation: attest.TrainedOn, How: "sha256 of the file", Resource: attest.Resource{Digest: attest.Digests(digest.FromString("data"))}})
	}
	return l
}

func certificate(env digest.Digest, name string, from, to time.Time) attest.Certificate {
	some := attest.ResourceOf("", digest.FromString("x"))
	return attest.Certificate{
		CertificateID: "urn:uuid:1", Verdict: attest.Certified, IssuedAt: from, Validity: attest.Validity{NotBefore: from, NotAfter: to},
		Finding: attest.Finding{
			Claim: "at most 1 %", EnvironmentName: name, Environment: attest.ResourceOf("", env), Suite: some, Criteria: some, Plan: some, Replay: some, Cases: 299,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 299, Passed: true}},
		},
	}
}

var day = 24 * time.Hour

// complete has everything that the default policy requires.
func complete(t testing.TB) (r *record, cert digest.Digest) {
	r = newRecord(t)
	r.release(verify.Release)
	r.state(verify.Provenance, model, lineage(true))
	return r, r.state(verify.Conformance, model, certificate(env, "prod", now.Add(-day), now.Add(day)))
}

func (r *record) decide(at time.Time, edit ...func(*Question)) (Decision, *verify.Evidence) {
	r.t.Helper()
	ev, err := verify.Gather(r.t.Context(), r, model, verify.GatherOptions{Trust: r.trust, Repository: "credit/scorer", Now: at})
	if err != nil {
		r.t.Fatal(err)
	}
	q := Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: at}
	for _, e := range edit {
		e(&q)
	}
	return Decide(DefaultPolicy(), ev, q), ev
}

func codes(d Decision) (list []string) {
	for _, r := range d.Reasons {
		list = append(list, r.Code)
	}
	return list
}

func TestAllow(t *testing.T) {
	r, _ := complete(t)
	d, _ := r.decide(now)
	if !d.Allow || !slices.Equal(codes(d), []string{CodeReleased, CodeTraced, CodeCertified}) {
		t.Fatalf("%+v", d)
	}
	a, err := d.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	again, _ := r.decide(now)
	if b, _ := again.Bytes(); !bytes.Equal(a, b) {
		t.Error("the same question has another answer")
	}
}

func TestEveryReason(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(r *record)
		edit func(*Question)
		at   time.Time
		want string
	}{
		"nothing at all":        {func(*record) {}, nil, now, CodeNoRelease},
		"no lineage":            {func(r *record) { r.release(verify.Release) }, nil, now, CodeNoLineage},
		"lineage without data":  {func(r *record) { r.state(verify.Provenance, model, lineage(false)) }, nil, now, CodeNoDataset},
		"no certificate":        {func(r *record) { r.release(verify.Release) }, nil, now, CodeNoCertificate},
		"released by the wrong": {func(r *record) { r.release(verify.Provenance) }, nil, now, verify.CodeRole},
		"another environment's certificate": {func(r *record) {
			r.state(verify.Conformance, model, certificate(env, "staging", now.Add(-day), now.Add(day)))
		}, nil, now, CodeNoCertificate},
		"unknown environment": {func(*record) {}, func(q *Question) { q.EnvironmentDocument = "" }, now, CodeNoEnvironment},
		"changed environment": {func(r *record) {
			r.state(verify.Conformance, model, certificate(digest.FromString("old"), "prod", now.Add(-day), now.Add(day)))
		}, nil, now, CodeEnvironmentChanged},
		"expired": {func(r *record) {
			r.state(verify.Conformance, model, certificate(env, "prod", now.Add(-2*day), now.Add(-day)))
		}, nil, now, CodeExpired},
		"not yet valid": {func(r *record) {
			r.state(verify.Conformance, model, certificate(env, "prod", now.Add(day), now.Add(2*day)))
		}, nil, now, CodeNotYetValid},
		"certified by the wrong": {func(r *record) {
			r.state(verify.Release, model, certificate(env, "prod", now.Add(-day), now.Add(day)))
		}, nil, now, verify.CodeRole},
		"certificate withdrawn": {func(r *record) {
			c := r.state(verify.Conformance, model, certificate(env, "prod", now.Add(-day), now.Add(day)))
			r.state(verify.Withdrawal, c, attest.Withdrawal{Reason: "a mistake", WithdrawnAt: now, StatedBy: "lab"})
		}, nil, now, CodeWithdrawn},
		"model withdrawn": {func(r *record) {
			r.state(verify.Withdrawal, model, attest.Withdrawal{Reason: "recall", WithdrawnAt: now, StatedBy: "risk"})
		}, nil, now, CodeRecalled},
		"parent withdrawn": {func(r *record) {
			r.state(verify.Provenance, model, lineage(true))
			r.state(verify.Withdrawal, parent, attest.Withdrawal{Reason: "recall", WithdrawnAt: now, StatedBy: "risk"})
		}, nil, now, CodeAncestorRecalled},
		"released, and another subject": {func(r *record) {
			s, err := attest.Marshal(attest.Statement{Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(parent)}}, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}")})
			if err != nil {
				r.t.Fatal(err)
			}
			r.attach(verify.Release, model, s, attest.PredicateSignature)
		}, nil, now, verify.CodeSubject},
		"released outside the window": {func(r *record) {
			raw, err := json.Marshal(r.trust)
			if err != nil {
				r.t.Fatal(err)
			}
			var file map[string]any
			if err := json.Unmarshal(raw, &file); err != nil {
				r.t.Fatal(err)
			}
			for _, id := range file["identities"].([]any) {
				id.(map[string]any)["notAfter"] = now.Add(-day)
			}
			if raw, err = json.Marshal(file); err != nil {
				r.t.Fatal(err)
			}
			if r.trust, err = verify.ParseTrust(raw); err != nil {
				r.t.Fatal(err)
			}
			r.release(verify.Release)
		}, nil, now, verify.CodeWindow},
		"another model":     {func(*record) {}, func(q *Question) { q.Model = parent }, now, CodeIncomplete},
		"nobody is trusted": {func(r *record) { r.trust = verify.NoTrust() }, nil, now, CodeNoTrust},
	} {
		r := newRecord(t)
		tc.make(r)
		var edit []func(*Question)
		if tc.edit != nil {
			edit = append(edit, tc.edit)
		}
		d, _ := r.decide(tc.at, edit...)
		if d.Allow || !slices.Contains(codes(d), tc.want) {
			t.Errorf("%s: allow %v, reasons %v; want %s", name, d.Allow, codes(d), tc.want)
		}
		for _, x := range d.Reasons {
			if x.Message == "" || x.Remedy == "" {
				t.Errorf("%s: reason %s says %q, and what would change it is %q", name, x.Code, x.Message, x.Remedy)
			}
		}
	}
}

// A second person for each role, and what the trust file asks of both.
func (r *record) second(role verify.Role, extra string) *verify.Key {
	r.t.Helper()
	k, err := verify.GenerateKey()
	if err != nil {
		r.t.Fatal(err)
	}
	yaml := "version: 1\nidentities:\n"
	add := func(id string, k *verify.Key, role verify.Role) {
		yaml += fmt.Sprintf("- id: %s\n  roles: [%s]\n  repositories: ['**']\n  publicKey: |\n    %s\n", id, role,
			strings.ReplaceAll(strings.TrimSpace(string(k.PublicPEM())), "\n", "\n    "))
	}
	for _, x := range verify.Roles {
		add(string(x)+"-team", r.keys[x], x)
	}
	add("second", k, role)
	if r.trust, err = verify.ParseTrust([]byte(yaml + extra)); err != nil {
		r.t.Fatal(err)
	}
	return k
}

func (r *record) with(role verify.Role, k *verify.Key, do func()) {
	old := r.keys[role]
	r.keys[role] = k
	do()
	r.keys[role] = old
}

// Below the quorum it is denied, each role with a code of its own; with one
// more holder it is allowed, and with the same one twice it is not.
func TestQuorums(t *testing.T) {
	for role, tc := range map[verify.Role]struct {
		again func(r *record)
		code  string
	}{
		verify.Release:    {func(r *record) { r.release(verify.Release) }, CodeReleaseQuorum},
		verify.Provenance: {func(r *record) { r.state(verify.Provenance, model, lineage(true)) }, CodeLineageQuorum},
		verify.Conformance: {func(r *record) {
			r.state(verify.Conformance, model, certificate(env, "prod", now.Add(-day), now.Add(day)))
		}, CodeCertificateQuorum},
	} {
		r, _ := complete(t)
		k := r.second(role, fmt.Sprintf("quorums:\n- {role: %s, repositories: ['credit/*'], atLeast: 2}\n", role))
		tc.again(r)
		if d, _ := r.decide(now); d.Allow || !slices.Equal(codes(d), []string{tc.code}) || d.Reasons[0].Remedy == "" {
			t.Errorf("%s: %v", role, codes(d))
		}
		r.with(role, k, func() { tc.again(r) })
		if d, _ := r.decide(now); !d.Allow {
			t.Errorf("%s, two holders: %v", role, codes(d))
		}
	}
}

func TestApprovals(t *testing.T) {
	approval := func(r *record, person, meaning string) {
		r.state(verify.Approval, model, attest.Approval{Person: person, NameHash: "ab", Meaning: meaning, Reason: "ok", ApprovedAt: now})
	}
	decide := func(r *record, p Policy, breakGlass bool) Decision {
		_, ev := r.decide(now)
		return Decide(p, ev, Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: now, BreakGlass: breakGlass})
	}
	two := DefaultPolicy()
	two.RequireApprovals = 2
	r, cert := complete(t)
	second := r.second(verify.Approval, "")
	if d := decide(r, two, false); !slices.Equal(codes(d), []string{CodeNoApproval}) {
		t.Errorf("none: %v", codes(d))
	}
	approval(r, "approval-team", "review")
	if d := decide(r, two, false); !slices.Equal(codes(d), []string{CodeNoApproval}) {
		t.Errorf("a review: %v", codes(d))
	}
	approval(r, "approval-team", "approval")
	if d := decide(r, two, false); !slices.Equal(codes(d), []string{CodeApprovalQuorum}) {
		t.Errorf("one of two: %v", codes(d))
	}
	if d := decide(r, two, true); !d.Allow || !d.BreakGlass || !slices.Contains(codes(d), CodeBreakGlass) {
		t.Errorf("the glass is broken: %+v", d)
	}
	if d := decide(r, DefaultPolicy(), true); !d.Allow || d.BreakGlass {
		t.Errorf("no glass to break: %+v", d)
	}
	r.with(verify.Approval, second, func() { approval(r, "second", "approval") })
	if d := decide(r, two, false); !d.Allow || !slices.Contains(codes(d), CodeApproved) {
		t.Errorf("two: %v", codes(d))
	}
	// The trust file can ask for it where the policy does not, and for more.
	r, _ = complete(t)
	r.second(verify.Approval, "quorums:\n- {role: approval, repositories: ['credit/*'], atLeast: 2}\n")
	if d := decide(r, DefaultPolicy(), false); !slices.Equal(codes(d), []string{CodeNoApproval}) {
		t.Errorf("asked for by the trust file: %v", codes(d))
	}
	// Breaking the glass lets nothing pass but a missing approval.
	r.state(verify.Withdrawal, cert, attest.Withdrawal{Reason: "x", WithdrawnAt: now, StatedBy: "lab"})
	r.state(verify.Withdrawal, model, attest.Withdrawal{Reason: "x", WithdrawnAt: now, StatedBy: "lab"})
	if d := decide(r, two, true); d.Allow || d.BreakGlass {
		t.Errorf("recalled, and the glass broken: %+v", d)
	}
}

// A submitter's own approval does not count: nor of whoever stated where it
// came from.
func TestSubmitterCannotApprove(t *testing.T) {
	for _, role := range []verify.Role{verify.Release, verify.Provenance} {
		r, _ := complete(t)
		k := r.second(role, "") // a key with that role, and below with approval too
		yaml, _ := json.Marshal(r.trust)
		var file map[string]any
		if err := json.Unmarshal(yaml, &file); err != nil {
			t.Fatal(err)
		}
		for _, id := range file["identities"].([]any) {
			if m := id.(map[string]any); m["id"] == "second" {
				m["roles"] = []string{string(role), "approval"}
			}
		}
		raw, _ := json.Marshal(file)
		var err error
		if r.trust, err = verify.ParseTrust(raw); err != nil {
			t.Fatal(err)
		}
		r.with(verify.Approval, k, func() {
			r.state(verify.Approval, model, attest.Approval{Person: "second", NameHash: "ab", Meaning: "approval", Reason: "ok", ApprovedAt: now})
		})
		p := DefaultPolicy()
		p.RequireApprovals = 1
		decide := func() Decision {
			_, ev := r.decide(now)
			return Decide(p, ev, Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: now})
		}
		if d := decide(); !d.Allow {
			t.Errorf("%s: before they submitted anything: %v", role, codes(d))
		}
		r.with(role, k, func() {
			if role == verify.Release {
				r.release(role)
			} else {
				r.state(role, model, lineage(true))
			}
		})
		if d := decide(); d.Allow || !slices.Equal(codes(d), []string{CodeOwnApproval, CodeNoApproval}) {
			t.Errorf("%s: %v", role, codes(d))
		}
	}
}

// A pushed record knows from which accounts the model came.
type pushed struct {
	*record
	accounts []string
}

func (p pushed) Submitters(context.Context, digest.Digest) ([]string, error) { return p.accounts, nil }

// Who pushed the version cannot approve it, where the trust file says whose the
// account is; and where that is not known, it is said, or denied if the policy
// says so.
func TestPusherCannotApprove(t *testing.T) {
	r, _ := complete(t)
	second := r.second(verify.Approval, "")
	const anns, bobs, nobodys = "user:00000000000000aa", "token:00000000000000bb", "user:00000000000000cc"
	plain := r.trust
	named := func() *verify.Trust {
		raw, err := json.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		var file map[string]any
		if err := json.Unmarshal(raw, &file); err != nil {
			t.Fatal(err)
		}
		for _, id := range file["identities"].([]any) {
			switch m := id.(map[string]any); m["id"] {
			case "approval-team":
				m["accounts"] = []string{anns}
			case "second":
				m["accounts"] = []string{bobs}
			}
		}
		if raw, err = json.Marshal(file); err != nil {
			t.Fatal(err)
		}
		trust, err := verify.ParseTrust(raw)
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}()
	approve := func(person string) {
		r.state(verify.Approval, model, attest.Approval{Person: person, NameHash: "ab", Meaning: "approval", Reason: "ok", ApprovedAt: now})
	}
	approve("approval-team")
	one, strict := DefaultPolicy(), DefaultPolicy()
	one.RequireApprovals, strict.RequireApprovals, strict.RequirePusher = 1, 1, true
	ask := func(trust *verify.Trust, src verify.Source, p Policy, breakGlass bool) Decision {
		ev, err := verify.Gather(t.Context(), src, model, verify.GatherOptions{Trust: trust, Repository: "credit/scorer", Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return Decide(p, ev, Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: now, BreakGlass: breakGlass})
	}
	allow := []string{CodeReleased, CodeTraced, CodeCertified, CodeApproved}
	unsure := []string{CodeReleased, CodeTraced, CodeCertified, CodeNoPusher, CodeApproved}
	for name, tc := range map[string]struct {
		trust    *verify.Trust
		src      verify.Source
		p        Policy
		allowed  bool
		want     []string
		remedied string
	}{
		"pushed by the approver":                {named, pushed{r, []string{anns}}, one, false, []string{CodePusherApproval, CodeNoApproval}, "somebody else"},
		"pushed by the approver, asked for":     {named, pushed{r, []string{anns}}, strict, false, []string{CodePusherApproval, CodeNoApproval}, "somebody else"},
		"tagged by the approver":                {named, pushed{r, []string{bobs, anns}}, one, false, []string{CodePusherApproval, CodeNoApproval}, "somebody else"},
		"pushed by another":                     {named, pushed{r, []string{bobs}}, one, true, allow, ""},
		"pushed by another, asked for":          {named, pushed{r, []string{bobs}}, strict, true, allow, ""},
		"pushed by nobody known":                {named, pushed{r, []string{nobodys}}, one, true, unsure, ""},
		"pushed by nobody known, asked for":     {named, pushed{r, []string{nobodys}}, strict, false, []string{CodeNoPusher}, "under accounts"},
		"pushed by one known and one not":       {named, pushed{r, []string{bobs, nobodys}}, strict, false, []string{CodeNoPusher}, "under accounts"},
		"the source does not know":              {named, r, one, true, unsure, ""},
		"the source does not know, asked for":   {named, r, strict, false, []string{CodeNoPusher}, "--offline"},
		"no manifest there":                     {named, pushed{r, nil}, strict, false, []string{CodeNoPusher}, "push it"},
		"a trust file without accounts":         {plain, pushed{r, []string{anns}}, one, true, allow, ""},
		"a trust file without, asked for":       {plain, pushed{r, []string{anns}}, strict, false, []string{CodeNoPusher}, "under accounts"},
		"neither accounts nor a source's log":   {plain, r, one, true, allow, ""},
		"no approvals are required, nor pusher": {named, r, DefaultPolicy(), true, allow[:3], ""},
	} {
		d := ask(tc.trust, tc.src, tc.p, false)
		if d.Allow != tc.allowed || !slices.Equal(codes(d), tc.want) {
			t.Errorf("%s: allow %v, %v, want %v", name, d.Allow, codes(d), tc.want)
		}
		if !tc.allowed && !strings.Contains(d.Reasons[0].Remedy, tc.remedied) {
			t.Errorf("%s: its remedy is %q", name, d.Reasons[0].Remedy)
		}
	}
	if d := ask(named, pushed{r, []string{nobodys}}, strict, true); !d.Allow || !d.BreakGlass || !strings.Contains(d.Reasons[3].Message, nobodys) {
		t.Errorf("the glass is broken: %+v", d)
	}
	r.with(verify.Approval, second, func() { approve("second") })
	if d := ask(named, pushed{r, []string{anns}}, strict, false); !d.Allow {
		t.Errorf("somebody else has approved it as well: %v", codes(d))
	}
}

// A status list takes effect within its life, and beyond it nothing does.
func TestStatusList(t *testing.T) {
	r, cert := complete(t)
	list := func(withdrawn ...digest.Digest) *verify.Status {
		l := attest.StatusList{Version: 1, Issuer: "x", Validity: attest.Validity{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}}
		for _, d := range withdrawn {
			l.Withdrawn = append(l.Withdrawn, attest.StatusEntry{Digest: string(d), Since: now})
		}
		return verify.OwnStatus(l)
	}
	strict := DefaultPolicy()
	strict.RequireStatus = true
	for name, tc := range map[string]struct {
		p      Policy
		status *verify.Status
		at     time.Time
		want   string
	}{
		"none, and none required":   {DefaultPolicy(), nil, now, ""},
		"none, and one required":    {strict, nil, now, CodeNoStatus},
		"up to date":                {strict, list(digest.FromString("x")), now, ""},
		"the certificate is listed": {DefaultPolicy(), list(cert), now, CodeWithdrawn},
		"the model is listed":       {DefaultPolicy(), list(model), now, CodeRecalled},
		"a parent is listed":        {DefaultPolicy(), list(parent), now, CodeAncestorRecalled},
		"the last moment":           {strict, list(), now.Add(time.Hour - time.Nanosecond), ""},
		"out of date":               {strict, list(), now.Add(time.Hour), verify.CodeStatusStale},
		"out of date, not required": {DefaultPolicy(), list(), now.Add(2 * time.Hour), verify.CodeStatusStale},
		"revoked, in a stale list":  {DefaultPolicy(), list(cert), now.Add(time.Hour), verify.CodeStatusStale},
		"revoked, all the same":     {DefaultPolicy(), list(cert), now.Add(time.Hour), CodeWithdrawn},
		"from the future":           {strict, list(), now.Add(-2 * time.Hour), verify.CodeStatusStale},
	} {
		ev, err := verify.Gather(t.Context(), r, model, verify.GatherOptions{Trust: r.trust, Repository: "credit/scorer", Now: tc.at, Status: tc.status})
		if err != nil {
			t.Fatal(err)
		}
		d := Decide(tc.p, ev, Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: tc.at})
		if d.Allow != (tc.want == "") || tc.want != "" && !slices.Contains(codes(d), tc.want) {
			t.Errorf("%s: %v, want %q", name, codes(d), tc.want)
		}
	}
}

// A suspension holds from the statement on until it ends or is lifted, by the
// statements and by a list alone.
func TestSuspension(t *testing.T) {
	until := now.Add(6 * time.Hour)
	suspended := func(from, until time.Time) attest.Withdrawal {
		return attest.Withdrawal{Reason: "under review", WithdrawnAt: from, StatedBy: "lab", Until: until}
	}
	for name, tc := range map[string]struct {
		about  func(cert digest.Digest) digest.Digest
		list   []attest.Withdrawal
		role   verify.Role
		listed bool
		at     time.Time
		want   string
	}{
		"the first moment":        {nil, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, now, CodeSuspended},
		"before it, all the same": {nil, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, now.Add(-time.Hour), CodeSuspended},
		"the last moment":         {nil, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, until.Add(-time.Nanosecond), CodeSuspended},
		"ended":                   {nil, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, until, ""},
		"before it is lifted":     {nil, []attest.Withdrawal{suspended(now, until), suspended(now.Add(time.Hour), now.Add(time.Hour))}, verify.Withdrawal, false, now.Add(time.Hour - 1), CodeSuspended},
		"lifted":                  {nil, []attest.Withdrawal{suspended(now, until), suspended(now.Add(time.Hour), now.Add(time.Hour))}, verify.Withdrawal, false, now.Add(time.Hour), ""},
		"withdrawn, and lifted":   {nil, []attest.Withdrawal{{Reason: "x", WithdrawnAt: now, StatedBy: "lab"}, suspended(now.Add(time.Hour), now.Add(time.Hour))}, verify.Withdrawal, false, now.Add(2 * time.Hour), CodeWithdrawn},
		"without the role":        {nil, []attest.Withdrawal{suspended(now, until)}, verify.Release, false, now, ""},
		"the model":               {func(digest.Digest) digest.Digest { return model }, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, now, CodeRecalled},
		"the model, ended":        {func(digest.Digest) digest.Digest { return model }, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, until, ""},
		"a parent":                {func(digest.Digest) digest.Digest { return parent }, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, now, CodeAncestorRecalled},
		"a parent, ended":         {func(digest.Digest) digest.Digest { return parent }, []attest.Withdrawal{suspended(now, until)}, verify.Withdrawal, false, until, ""},
		"listed":                  {nil, nil, "", true, now, CodeSuspended},
		"listed, last moment":     {nil, nil, "", true, until.Add(-time.Nanosecond), CodeSuspended},
		"listed, ended":           {nil, nil, "", true, until, ""},
		"listed, out of date":     {nil, nil, "", true, now.Add(12 * time.Hour), verify.CodeStatusStale},
		"listed, lifted since":    {nil, []attest.Withdrawal{suspended(now, until), suspended(now.Add(time.Hour), now.Add(time.Hour))}, verify.Withdrawal, true, now.Add(2 * time.Hour), CodeSuspended},
	} {
		r, cert := complete(t)
		about := cert
		if tc.about != nil {
			about = tc.about(cert)
		}
		for _, w := range tc.list {
			r.state(tc.role, about, w)
		}
		var status *verify.Status
		if tc.listed {
			status = verify.OwnStatus(attest.StatusList{Version: 1, Issuer: "x", Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(12 * time.Hour)},
				Withdrawn: []attest.StatusEntry{{Digest: string(cert), Since: now, Until: until}}})
		}
		ev, err := verify.Gather(t.Context(), r, model, verify.GatherOptions{Trust: r.trust, Repository: "credit/scorer", Now: tc.at, Status: status})
		if err != nil {
			t.Fatal(err)
		}
		d := Decide(DefaultPolicy(), ev, Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: tc.at})
		if d.Allow != (tc.want == "") || tc.want != "" && !slices.Equal(codes(d), []string{tc.want}) {
			t.Errorf("%s: %v, want %q", name, codes(d), tc.want)
		}
		if tc.want == CodeSuspended && !strings.Contains(d.Reasons[0].Remedy, "wait until 2026-03-01T18:00:00Z") {
			t.Errorf("%s: its remedy is %q", name, d.Reasons[0].Remedy)
		}
	}
}

// Policies as they were before there were approvals mean what they meant.
func TestPolicyKeepsItsDigest(t *testing.T) {
	p, err := ParsePolicy([]byte("version: 1\nrequireRelease: true\nrequireLineage: false\nrequireCertificate: true\n"))
	if err != nil || p.Digest() != digest.FromString(`{"requireCertificate":true,"requireLineage":false,"requireRelease":true,"version":1}`) {
		t.Errorf("%s, %v", p.Digest(), err)
	}
	if _, err := ParsePolicy([]byte("version: 1\nrequireRelease: true\nrequireLineage: false\nrequireCertificate: true\nrequireApprovals: -1\n")); err == nil {
		t.Error("a negative number of approvals is accepted")
	}
}

// The clock moves over the certificate's window, and the decision with it.
func TestMovedClock(t *testing.T) {
	r, _ := complete(t)
	for at, want := range map[time.Time]bool{
		now.Add(-day - time.Nanosecond): false, now.Add(-day): true, now: true, now.Add(day - time.Nanosecond): true, now.Add(day): false, now.Add(100 * day): false,
	} {
		if d, _ := r.decide(at); d.Allow != want {
			t.Errorf("at %v: allow is %v: %v", at, d.Allow, codes(d))
		}
	}
}

func TestPolicyNarrows(t *testing.T) {
	r := newRecord(t)
	r.release(verify.Release)
	_, ev := r.decide(now)
	q := Question{Model: model, Repository: "credit/scorer", Environment: "prod", Now: now}
	if d := Decide(Policy{Version: 1, RequireRelease: true}, ev, q); !d.Allow {
		t.Errorf("only a release is required: %v", codes(d))
	}
	for _, bad := range []string{"", "version: 1", "version: 1\nrequireRelease: true\nrequireLineage: true", "version: 2\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true",
		"version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\nmore: 1"} {
		if p, err := ParsePolicy([]byte(bad)); err == nil {
			t.Errorf("%q parses as %+v", bad, p)
		}
	}
	if p, err := ParsePolicy([]byte("version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\n")); err != nil || p.Digest() != DefaultPolicy().Digest() {
		t.Errorf("the default, written down: %v", err)
	}
}

// Take any facts away, or blank any field of one: a deny stays a deny.
func TestLessEvidenceNeverAllows(t *testing.T) {
	r, cert := complete(t)
	r.state(verify.Withdrawal, cert, attest.Withdrawal{Reason: "a mistake", WithdrawnAt: now, StatedBy: "lab"})
	r.state(verify.Provenance, model, lineage(false))
	r.release(verify.Deployment)
	denied, ev := r.decide(now)
	if denied.Allow {
		t.Fatal("a withdrawn certificate is allowed")
	}
	q := Question{Model: model, Repository: "credit/scorer", Environment: "prod", EnvironmentDocument: env, Now: now}
	rapid.Check(t, func(rt *rapid.T) {
		less := *ev
		less.Facts = nil
		for _, f := range ev.Facts {
			// What speaks against the model must not be taken away: a source
			// that hides it is another matter, which the log's completeness
			// answers.
			if _, ok := verify.Predicate[attest.Withdrawal](f); ok || rapid.Bool().Draw(rt, "keep") {
				switch rapid.SampledFrom([]string{"", "predicate", "about", "all"}).Draw(rt, "blank") {
				case "predicate":
					if f.PredicateType != attest.PredicateWithdrawal {
						f.PredicateType = ""
					}
				case "about":
					if f.PredicateType != attest.PredicateWithdrawal {
						f.About = ""
					}
				case "all":
					if f.PredicateType != attest.PredicateWithdrawal {
						f = verify.Fact{}
					}
				}
				less.Facts = append(less.Facts, f)
			}
		}
		if d := Decide(DefaultPolicy(), &less, q); d.Allow {
			rt.Errorf("allowed with less: %v", d.Reasons)
		}
	})
	// And of a complete record, every fact is needed.
	r, _ = complete(t)
	allowed, ev := r.decide(now)
	if !allowed.Allow {
		t.Fatal(codes(allowed))
	}
	for i := range ev.Facts {
		less := *ev
		less.Facts = slices.Delete(slices.Clone(ev.Facts), i, i+1)
		if d := Decide(DefaultPolicy(), &less, q); d.Allow {
			t.Errorf("allowed without %s", ev.Facts[i].PredicateType)
		}
	}
	incomplete := *ev
	incomplete.Incomplete = "too much"
	if d := Decide(DefaultPolicy(), &incomplete, q); d.Allow {
		t.Error("allowed on evidence that is not all there")
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\nrequireApprovals: 2\nrequireStatus: true\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePolicy(raw)
		if err == nil && (p.Digest().Validate() != nil || p.RequireApprovals < 0) {
			t.Errorf("%+v", p)
		}
	})
}

func TestArrows(t *testing.T) {
	for pkg, allowed := range map[string][]string{
		".":         {"github.com/assay-dev/assay/verify", "github.com/assay-dev/assay/verify/attest"},
		"..":        {"github.com/assay-dev/assay/verify/attest"},
		"../oms":    {"github.com/assay-dev/assay/verify", "github.com/assay-dev/assay/verify/attest"},
		"../attest": nil,
	} {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range strings.Fields(string(out)) {
			if strings.HasPrefix(p, "github.com/assay-dev/") && !slices.Contains(allowed, p) {
				t.Errorf("%s imports %s: the gate decides on evidence, evidence on documents, and documents on nothing", pkg, p)
			}
		}
	}
}

// A certificate stands as long as nothing changed that voids it, by the same
// rule by which 'assay env diff' tells people; and not if what changed cannot be
// seen.
func TestEnvironmentThatChanged(t *testing.T) {
	before := digest.FromString("before")
	document := func(edit func(*attest.Environment)) attest.Environment {
		e := attest.Environment{Name: "prod", Labels: map[string]string{"region": "eu-1"}, Target: attest.Target{URL: "http://10.0.0.1", Version: "1"}}
		edit(&e)
		return e
	}
	same := func(*attest.Environment) {}
	for name, tc := range map[string]struct {
		now      func(*attest.Environment)
		missing  digest.Digest
		code     string // of a reason; "" if it is allowed without one
		contains string
	}{
		"recorded again":   {now: func(e *attest.Environment) { e.RecordedAt = now }},
		"another region":   {now: func(e *attest.Environment) { e.Labels["region"] = "eu-2" }, code: CodeEnvironmentDiffers, contains: "label.region was eu-1 and is eu-2"},
		"another version":  {now: func(e *attest.Environment) { e.Target.Version = "2" }, code: CodeEnvironmentChanged, contains: "target.version was 1 and is 2"},
		"another address":  {now: func(e *attest.Environment) { e.Target.URL = "http://10.0.0.2" }, code: CodeEnvironmentChanged, contains: "target.url"},
		"an unknown label": {now: func(e *attest.Environment) { e.Labels["gpu"] = "new" }, code: CodeEnvironmentChanged, contains: "label.gpu was not known"},
		"both": {now: func(e *attest.Environment) { e.Labels["region"], e.Target.Version = "eu-2", "2" },
			code: CodeEnvironmentChanged, contains: "target.version"},
		"many": {now: func(e *attest.Environment) {
			for _, k := range []string{"a", "b", "c", "d", "e"} {
				e.Labels[k] = "x"
			}
		}, code: CodeEnvironmentChanged, contains: "and 2 more"},
		"the old document is not at hand": {now: same, missing: before, code: CodeEnvironmentChanged, contains: "not at hand"},
		"nor the new one":                 {now: same, missing: env, code: CodeEnvironmentChanged, contains: "not at hand"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecord(t)
			r.release(verify.Release)
			r.state(verify.Provenance, model, lineage(true))
			r.state(verify.Conformance, model, certificate(before, "prod", now.Add(-day), now.Add(day)))
			d, ev := r.decide(now, func(q *Question) {
				q.Documents = map[digest.Digest]attest.Environment{before: document(same), env: document(tc.now)}
				delete(q.Documents, tc.missing)
			})
			if got := Measured(ev, "prod"); !slices.Equal(got, []digest.Digest{before}) || len(Measured(ev, "staging")) > 0 {
				t.Errorf("measured: %v", got)
			}
			if d.Allow != (tc.code != CodeEnvironmentChanged) {
				t.Errorf("allow is %v: %+v", d.Allow, d.Reasons)
			}
			i := slices.IndexFunc(d.Reasons, func(x Reason) bool { return x.Code == tc.code })
			if tc.code == "" {
				if slices.Contains(codes(d), CodeEnvironmentDiffers) {
					t.Errorf("reasons: %+v", d.Reasons)
				}
			} else if i < 0 || !strings.Contains(d.Reasons[i].Message, tc.contains) {
				t.Errorf("no reason %s with %q: %+v", tc.code, tc.contains, d.Reasons)
			}
		})
	}
}
