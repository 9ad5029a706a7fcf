package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/gate"
	"github.com/assay-dev/assay/verify/oms"
)

const credit = "credit/scorer"

// A team has a key for each role, and a trust file.
type team struct {
	h    *house
	keys map[verify.Role]*verify.Key
}

func newTeam(h *house) *team {
	t := &team{h, map[verify.Role]*verify.Key{}}
	for _, role := range verify.Roles {
		t.keys[role] = signingKey(h.t)
	}
	t.apply("")
	return t
}

func signingKey(t testing.TB) *verify.Key {
	t.Helper()
	k, err := verify.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func identity(id string, k *verify.Key, extra string, roles ...verify.Role) string {
	return fmt.Sprintf("- id: %s\n  roles: [%s]\n  repositories: ['**']\n%s  publicKey: |\n    %s\n", id, strings.Trim(fmt.Sprint(roles), "[]"), extra,
		strings.ReplaceAll(strings.TrimSpace(string(k.PublicPEM())), "\n", "\n    "))
}

// yaml is the trust file without some roles and with more entries.
func (m *team) yaml(more string, without ...verify.Role) []byte {
	s := "version: 1\nidentities:\n"
	for _, role := range verify.Roles {
		if !slices.Contains(without, role) {
			s += identity(string(role), m.keys[role], "", role)
		}
	}
	return []byte(s + more)
}

func (m *team) apply(more string, without ...verify.Role) {
	m.h.t.Helper()
	if _, err := m.h.SetTrust(m.h.t.Context(), me, m.yaml(more, without...)); err != nil {
		m.h.t.Fatal(err)
	}
}

func releaseStatement(t testing.TB, d digest.Digest) []byte {
	t.Helper()
	raw, err := attest.Marshal(attest.Statement{
		Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(d)}}, PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (m *team) sign(k *verify.Key, subject digest.Digest, statement []byte, predicateType string) digest.Digest {
	m.h.t.Helper()
	b, err := verify.SignStatement(m.h.t.Context(), k, statement)
	if err != nil {
		m.h.t.Fatal(err)
	}
	return m.attach(subject, b, predicateType)
}

func (m *team) attach(subject digest.Digest, bundle []byte, predicateType string) digest.Digest {
	m.h.t.Helper()
	ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}, bundle, predicateType, m.h.clock())
	if err != nil {
		m.h.t.Fatal(err)
	}
	m.h.blob(credit, "{}")
	m.h.blob(credit, string(ref.Signed))
	return m.h.put(credit, string(ref.Descriptor.Digest), ref.Manifest).Descriptor.Digest
}

func (m *team) state(k *verify.Key, subject digest.Digest, p attest.Predicate) digest.Digest {
	m.h.t.Helper()
	s, err := attest.NewStatement(subject, p)
	if err != nil {
		m.h.t.Fatal(err)
	}
	return m.sign(k, subject, s, p.PredicateType())
}

func (m *team) facts(subject digest.Digest) []Fact {
	m.h.t.Helper()
	list, err := m.h.Facts(m.h.t.Context(), me, credit, subject)
	if err != nil {
		m.h.t.Fatal(err)
	}
	return list
}

// legacy pushes what `cosign sign` v2 pushes: a manifest under the tag made
// from the subject's digest, with a signature for each key.
func (m *team) legacy(subject digest.Digest, keys ...*verify.Key) digest.Digest {
	m.h.t.Helper()
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: m.h.blob(credit, "{}")}
	manifest.SchemaVersion = 2
	manifest.Config.MediaType = "application/vnd.oci.image.config.v1+json"
	payload := `{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"` + string(subject) + `"},"type":"cosign container image signature"},"optional":null}`
	for _, k := range keys {
		sig, err := verify.SignMessage(k, []byte(payload))
		if err != nil {
			m.h.t.Fatal(err)
		}
		l := m.h.blob(credit, payload)
		l.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
		l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
		manifest.Layers = append(manifest.Layers, l)
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		m.h.t.Fatal(err)
	}
	return m.h.put(credit, "sha256-"+subject.Encoded()+".sig", body).Descriptor.Digest
}

func TestLegacySignaturesAreFacts(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor.Digest
	first := m.legacy(model, m.keys[verify.Release])
	facts := m.facts(model)
	if len(facts) != 1 || facts[0].Outcome != verify.OutcomeVerified || facts[0].Role != "release" || facts[0].Referrer != first || facts[0].Signed.By != verify.ByLog {
		t.Fatalf("%+v", facts)
	}
	// Signing again moves the tag to a manifest with one more signature; the
	// former manifest's facts go.
	h.advance(time.Minute)
	second := m.legacy(model, m.keys[verify.Release], signingKey(t))
	facts = m.facts(model)
	if len(facts) != 2 || facts[0].Referrer != second || facts[1].Outcome != verify.CodeUnknownKey {
		t.Errorf("%+v", facts)
	}
	h.sound()
	// The gate reads them as any other.
	rec, err := h.Decide(t.Context(), me, credit, "1.0.0", "prod")
	if err != nil || slices.ContainsFunc(rec.Reasons, func(r gate.Reason) bool { return r.Code == gate.CodeNoRelease }) {
		t.Errorf("%+v, %v", rec.Reasons, err)
	}
	if err := h.DeleteTag(t.Context(), me, credit, "sha256-"+model.Encoded()+".sig"); err != nil {
		t.Fatal(err)
	}
	if facts := m.facts(model); len(facts) != 0 {
		t.Errorf("without the tag: %+v", facts)
	}
	h.sound()
	third := m.legacy(model, m.keys[verify.Release])
	if err := h.DeleteManifest(t.Context(), me, credit, third); err != nil {
		t.Fatal(err)
	}
	if facts := m.facts(model); len(facts) != 0 {
		t.Errorf("without the manifest: %+v", facts)
	}
	h.sound()
}

// After an upgrade, what an older program could not verify is verified again,
// in the background, and the log says what came of it; before that it is not
// remembered.
func TestUpgradeReviews(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor.Digest
	referrer := m.sign(m.keys[verify.Release], model, releaseStatement(t, model), attest.PredicateSignature)
	if _, err := h.review(ctx); err != nil {
		t.Fatal(err)
	}
	trust, _, err := h.trustInForce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// As a program of the generation before would have left it.
	err = h.submit(ctx, func(tx *txn) error {
		k := key("fact", credit, string(model), string(referrer))
		var f factRow
		if ok, err := load(tx, k, &f); err != nil || !ok {
			return orElse(err, errors.New("there is no fact"))
		}
		f.saidRow, f.Generation = saidRow{Outcome: verify.CodeBundleInvalid, Message: "an older program did not know it"}, generation-1
		tx.put(k, f)
		tx.emit(Event{Kind: EventFact, Actor: me.ID, Repository: credit})
		var row reviewRow
		if _, err := load(tx, key("review"), &row); err != nil {
			return err
		}
		row.Generation = generation - 1
		tx.put(key("review"), row)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.crash()
	if facts := m.facts(model); len(facts) != 1 || facts[0].Outcome != verify.CodeBundleInvalid {
		t.Fatalf("%+v", facts)
	}
	if why, err := (indexSource{h.Registry, credit}).Failed(ctx, model, referrer, trust.Digest()); err != nil || why != nil {
		t.Errorf("what an older program said is remembered: %v, %v", why, err)
	}
	if rec := m.decide(); slices.Contains(reasons(rec), gate.CodeNoRelease) {
		t.Errorf("the gate takes what an older program said: %v", reasons(rec))
	}
	size := h.leaves()
	rv, err := h.review(ctx)
	if err != nil || rv == nil || rv.Flipped != 1 || h.leaves() != size+1 {
		t.Fatalf("%+v, %v, %d leaves", rv, err, h.leaves()-size)
	}
	if facts := m.facts(model); len(facts) != 1 || facts[0].Outcome != verify.OutcomeVerified || facts[0].Referrer != referrer {
		t.Errorf("%+v", facts)
	}
	if again, err := h.review(ctx); err != nil || again != nil {
		t.Errorf("it was reviewed twice: %+v, %v", again, err)
	}
	h.sound()
}

// Attestations of cosign before version 3 as referrers ("oci-1-1"), and what
// others attach under the same type.
func TestLegacyReferrers(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor
	statement := releaseStatement(t, model.Digest)
	b, err := verify.SignStatement(t.Context(), m.keys[verify.Release], statement)
	if err != nil {
		t.Fatal(err)
	}
	var bundle struct {
		Envelope json.RawMessage `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(b, &bundle); err != nil {
		t.Fatal(err)
	}
	attach := func(mediaType, content string) digest.Digest {
		h.blob(credit, "{}")
		l := h.blob(credit, content)
		l.MediaType = mediaType
		manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: attest.InTotoPayloadType, Config: ocispec.DescriptorEmptyJSON, Subject: &model, Layers: []ocispec.Descriptor{l}}
		manifest.SchemaVersion = 2
		body, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		return h.put(credit, string(digest.FromBytes(body)), body).Descriptor.Digest
	}
	attach(attest.InTotoPayloadType, string(statement)) // signed by nobody
	signed := attach("application/vnd.dsse.envelope.v1+json", string(bundle.Envelope))
	if facts := m.facts(model.Digest); len(facts) != 1 || facts[0].Referrer != signed || facts[0].Outcome != verify.OutcomeVerified || facts[0].Role != "release" {
		t.Errorf("%+v", facts)
	}
	if rec := m.decide(); slices.Contains(reasons(rec), gate.CodeNoRelease) {
		t.Errorf("%v", reasons(rec))
	}
	h.sound()
}

func TestUnverifiableStatementsAreFacts(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	model := h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor
	h.put(credit, string(digest.FromBytes(h.model(credit, &model, verify.NotationArtifact, "a Notation signature"))), h.model(credit, &model, verify.NotationArtifact, "a Notation signature"))
	m.attach(model.Digest, []byte("no bundle"), attest.PredicateSignature)
	m.attach(model.Digest, []byte(strings.Repeat("x", verify.MaxBundle+1)), attest.PredicateSignature)
	want := map[string]string{verify.CodeUnsupported: verify.NotationArtifact, verify.CodeBundleInvalid: attest.PredicateSignature, verify.CodeTooLarge: attest.PredicateSignature}
	for _, f := range m.facts(model.Digest) {
		if want[f.Outcome] != f.PredicateType || f.Message == "" {
			t.Errorf("%+v", f)
		}
		delete(want, f.Outcome)
	}
	if len(want) > 0 {
		t.Errorf("not among the facts: %v", want)
	}
	// A gate does not read again what it knows to be none.
	src := indexSource{h.Registry, credit}
	facts := m.facts(model.Digest)
	for _, f := range facts {
		why, err := src.Failed(t.Context(), model.Digest, f.Referrer, f.Trust)
		if err != nil || why == nil || why.Code != f.Outcome {
			t.Errorf("%s: %v, %v", f.Outcome, why, err)
		}
		if why, _ := src.Failed(t.Context(), model.Digest, f.Referrer, digest.FromString("another trust file")); why != nil {
			t.Errorf("%s is remembered under another trust file", f.Outcome)
		}
	}
	h.sound()
}

// What a trust file would flip is what it flips, and the log says so.
func TestTrustReview(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	m := newTeam(h)
	models := make([]digest.Digest, 70) // more than a page
	for i := range models {
		models[i] = h.put(credit, fmt.Sprintf("1.0.%d", i), h.model(credit, nil, "application/x-model", fmt.Sprint("weights", i))).Descriptor.Digest
		m.sign(m.keys[verify.Release], models[i], releaseStatement(t, models[i]), attest.PredicateSignature)
	}
	deployed := m.state(m.keys[verify.Deployment], models[0], attest.Deployment{EnvironmentName: "prod", Environment: attest.ResourceOf("", digest.FromString("env")), Basis: "observed", StatedBy: "p", From: h.clock()})
	m.legacy(models[1], m.keys[verify.Release])
	if rv, err := h.review(ctx); err != nil || rv == nil || rv.Examined != 72 || rv.Flipped != 0 {
		t.Fatalf("the first review: %+v, %v", rv, err)
	}

	next := m.yaml("", verify.Release, verify.Deployment)
	size := h.leaves()
	test, err := h.TestTrust(ctx, me, next)
	if err != nil || test.Examined != 72 || test.Flipped != 72 || h.leaves() != size {
		t.Fatalf("test: %d examined, %d flipped, %v", test.Examined, test.Flipped, err)
	}
	if f := test.Flips[0]; f.Before.Outcome != verify.OutcomeVerified || f.After.Outcome != verify.CodeUnknownKey || f.Repository != credit || f.After.Remedy == "" {
		t.Errorf("%+v", f)
	}
	if list, _ := h.Deployments(ctx, me, "prod", time.Time{}, AsOf{}); len(list) != 1 {
		t.Fatalf("deployments: %+v", list)
	}
	h.advance(time.Hour)
	if _, err := h.SetTrust(ctx, me, next); err != nil {
		t.Fatal(err)
	}
	// It is cut off in the middle, and goes on after the restart.
	cut, stop := context.WithCancel(ctx)
	stop()
	if _, err := h.review(cut); err == nil {
		t.Fatal("a review without time ended")
	}
	h.crash()
	applied, err := h.review(ctx)
	if err != nil || applied.Flipped != test.Flipped || applied.Finished.IsZero() {
		t.Fatalf("%+v, %v", applied, err)
	}
	for i, f := range applied.Flips {
		if f != test.Flips[i] {
			t.Errorf("test said %+v, and it is %+v", test.Flips[i], f)
			break
		}
	}
	facts := m.facts(models[0])
	for _, f := range facts {
		if f.Outcome != verify.CodeUnknownKey || f.Trust != applied.Trust || !f.At.Before(h.clock()) {
			t.Errorf("%+v", f)
		}
	}
	// What followed from the statement went with it.
	if list, _ := h.Deployments(ctx, me, "prod", time.Time{}, AsOf{}); len(list) != 0 {
		t.Errorf("deployments: %+v", list)
	}
	changes := 0
	for i := size; i < h.leaves(); i++ {
		l, err := h.Leaf(ctx, me, i)
		if err != nil {
			t.Fatal(err)
		}
		if l.Event.Kind == EventFact {
			changes++
			if l.Event.Outcome != verify.CodeUnknownKey || !slices.Contains(l.Event.Subjects, applied.Trust) {
				t.Errorf("%+v", l.Event)
			}
		}
	}
	if changes != 72 {
		t.Errorf("%d leaves of changed facts", changes)
	}
	h.sound()
	if again, err := h.review(ctx); err != nil || again != nil {
		t.Errorf("it was reviewed twice: %+v, %v", again, err)
	}
	// Back again: everything as it was, with the time at which it was admitted.
	m.apply("")
	if back, err := h.review(ctx); err != nil || back.Flipped != 72 {
		t.Errorf("%+v, %v", back, err)
	}
	if list, _ := h.Deployments(ctx, me, "prod", time.Time{}, AsOf{}); len(list) != 1 || list[0].Statement != deployed || list[0].AdmittedAt.Equal(h.clock()) {
		t.Errorf("deployments: %+v", list)
	}
	if rv, err := h.TrustReview(ctx, me); err != nil || rv.Flipped != 72 {
		t.Errorf("%+v, %v", rv, err)
	}
	h.sound()
}

func (h *house) leaves() int64 {
	h.t.Helper()
	s, err := h.Stats(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return s.Leaves
}

// certified is a model with everything, and its certificate.
func (m *team) certified() (model, certificate digest.Digest) {
	h := m.h
	raw, err := attest.Marshal(attest.Environment{Name: "prod", Target: attest.Target{Protocol: "oip-v2-rest", URL: "http://127.0.0.1:1", Model: "m"}, RecordedAt: h.clock(),
		Fingerprint: map[string]attest.FingerprintField{"cpu": {Value: "x", Assurance: attest.Observed}}})
	if err != nil {
		h.t.Fatal(err)
	}
	env := h.put("env/prod", "current", h.model("env/prod", nil, attest.EnvironmentType, string(raw))).Descriptor.Digest
	model = h.put(credit, "1.0.0", h.model(credit, nil, "application/x-model", "weights")).Descriptor.Digest
	m.sign(m.keys[verify.Release], model, releaseStatement(h.t, model), attest.PredicateSignature)
	m.state(m.keys[verify.Provenance], model, attest.Lineage{RecordedAt: h.clock(), Parents: []attest.Parent{}, Code: []attest.Code{},
		Datasets: []attest.Dataset{{Relation: attest.TrainedOn, How: "sha256", Resource: attest.Resource{Digest: attest.Digests(digest.FromString("data"))}}}})
	some := attest.ResourceOf("", digest.FromString("x"))
	certificate = m.state(m.keys[verify.Conformance], model, attest.Certificate{
		CertificateID: "urn:uuid:1", Verdict: attest.Certified, IssuedAt: h.clock(), Validity: attest.Validity{NotBefore: h.clock(), NotAfter: h.clock().Add(90 * 24 * time.Hour)},
		Finding: attest.Finding{
			Claim: "at most 1 %", EnvironmentName: "prod", Environment: attest.ResourceOf("", env), Suite: some, Criteria: some, Plan: some, Replay: some, Cases: 299,
			Metrics: []attest.Metric{{Name: "flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 299, Passed: true}},
		},
	})
	return model, certificate
}

func (m *team) decide() DecisionRecord {
	m.h.t.Helper()
	rec, err := m.h.Decide(m.h.t.Context(), me, credit, "1.0.0", "prod")
	if err != nil {
		m.h.t.Fatal(err)
	}
	return rec
}

func reasons(rec DecisionRecord) (codes []string) {
	for _, r := range rec.Reasons {
		codes = append(codes, r.Code)
	}
	return codes
}

// A withdrawal takes effect at the gate at once, and offline within the life
// of the status list.
func TestWithdrawalAndStatusList(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	m := newTeam(h)
	_, certificate := m.certified()
	if rec := m.decide(); !rec.Allow {
		t.Fatal(reasons(rec))
	}
	before, err := h.StatusList(ctx, me)
	if err != nil || len(before.List.Withdrawn) != 0 {
		t.Fatalf("%+v, %v", before.List, err)
	}
	h.advance(time.Minute)
	m.state(m.keys[verify.Release], certificate, attest.Withdrawal{Reason: "not mine to withdraw", WithdrawnAt: h.clock(), StatedBy: "x"})
	if l, _ := h.StatusList(ctx, me); len(l.List.Withdrawn) != 0 {
		t.Error("somebody without the role withdrew it")
	}
	withdrawal := m.state(m.keys[verify.Withdrawal], certificate, attest.Withdrawal{Reason: "a mistake", WithdrawnAt: h.clock(), StatedBy: "lab"})
	if rec := m.decide(); rec.Allow || !slices.Contains(reasons(rec), gate.CodeWithdrawn) {
		t.Errorf("allowed %v: %v", rec.Allow, reasons(rec))
	}
	after, err := h.StatusList(ctx, access.Actor{ID: "user:gate"})
	if err != nil || len(after.List.Withdrawn) != 1 || after.List.Withdrawn[0].Digest != string(certificate) {
		t.Fatalf("%+v, %v", after.List, err)
	}
	if _, err := h.StatusList(ctx, access.Actor{}); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("for nobody: %v", err)
	}
	// Offline: the server's own key has the role withdrawal there.
	key, err := verify.NewKey(h.id.Status)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := verify.ParseTrust(m.yaml(identity("server", key, "", verify.Withdrawal)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := verify.ParseStatus(after.Envelope, trust, verify.Context{Repository: credit, Now: h.clock()})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.List.Find(certificate); !ok {
		t.Error("the certificate is not in the list")
	}
	if _, err := verify.ParseStatus(after.Envelope, trust, verify.Context{Repository: credit, Now: h.clock().Add(24 * time.Hour)}); err == nil {
		t.Error("yesterday's list is believed")
	}
	h.sound()
	h.crash()
	if l, err := h.StatusList(ctx, me); err != nil || len(l.List.Withdrawn) != 1 {
		t.Errorf("after a crash: %+v, %v", l.List, err)
	}
	// The statement that withdraws cannot be removed from a release.
	if err := h.DeleteManifest(ctx, me, credit, withdrawal); !errors.Is(err, ErrManifestHeld) {
		t.Errorf("the withdrawal was deleted: %v", err)
	}
	h.sound()
}

func TestApprovalsAndBreakGlass(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	var log bytes.Buffer
	h.Registry.log = slog.New(slog.NewTextHandler(&log, nil))
	m := newTeam(h)
	model, _ := m.certified()
	ann, bob := signingKey(t), signingKey(t)
	m.apply(identity("ann", ann, "", verify.Approval) + identity("bob", bob, "", verify.Approval) + identity("boss", m.keys[verify.Release], "", verify.Approval))
	policy := "version: 1\nrequireRelease: true\nrequireLineage: true\nrequireCertificate: true\nrequireApprovals: 2\n"
	if _, err := h.SetPolicy(ctx, me, []byte(policy)); err != nil {
		t.Fatal(err)
	}
	approve := func(k *verify.Key, person, meaning string) digest.Digest {
		p, err := h.EnrollPerson(ctx, me, person, "Somebody called "+person)
		if err != nil {
			t.Fatal(err)
		}
		return m.state(k, model, attest.Approval{Person: person, NameHash: p.NameHash, Meaning: meaning, Reason: "validated", ApprovedAt: h.clock()})
	}
	want := func(codes ...string) {
		t.Helper()
		rec := m.decide()
		if rec.Allow {
			t.Errorf("allowed, want %v", codes)
		}
		for _, c := range codes {
			if !slices.Contains(reasons(rec), c) {
				t.Errorf("reasons %v, want %s", reasons(rec), c)
			}
		}
	}
	want(gate.CodeNoApproval)
	approve(m.keys[verify.Release], "release", attest.MeaningApproval) // who submitted it
	want(gate.CodeOwnApproval, gate.CodeNoApproval)
	approve(ann, "ann", "review")
	want(gate.CodeNoApproval)
	approve(ann, "ann", attest.MeaningApproval)
	approve(ann, "ann", attest.MeaningApproval) // twice is once
	want(gate.CodeApprovalQuorum)
	approve(bob, "ann", attest.MeaningApproval) // in another's name
	want(gate.CodeApprovalQuorum)

	if _, err := h.BreakGlass(ctx, access.Actor{ID: "user:p", Grants: []access.Grant{{Role: access.Pusher, Repositories: "**"}}}, credit, "1.0.0", "prod", "x"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("a pusher breaks the glass: %v", err)
	}
	if _, err := h.BreakGlass(ctx, me, credit, "1.0.0", "prod", " "); !errors.Is(err, ErrDocumentInvalid) {
		t.Errorf("without a reason: %v", err)
	}
	rec, err := h.BreakGlass(ctx, me, credit, "1.0.0", "prod", "outage 4711")
	if err != nil || !rec.Allow || !rec.BreakGlass || !slices.Contains(reasons(rec), gate.CodeBreakGlass) {
		t.Fatalf("%+v, %v", rec.Decision, err)
	}
	l, err := h.Leaf(ctx, me, rec.LogIndex)
	if err != nil || l.Event.Kind != EventBreakGlass || l.Event.ReasonHash == "" || bytes.Contains(l.Bytes, []byte("4711")) {
		t.Errorf("%+v, %v", l.Event, err)
	}
	if !strings.Contains(log.String(), "BREAK GLASS") {
		t.Errorf("it is not loud: %s", &log)
	}
	again, err := h.BreakGlass(ctx, me, credit, "1.0.0", "prod", "outage 4711")
	if err != nil || again.LogIndex == rec.LogIndex {
		t.Errorf("the second one has no leaf of its own: %+v, %v", again, err)
	}
	approve(bob, "bob", attest.MeaningApproval)
	if rec := m.decide(); !rec.Allow || rec.BreakGlass || !slices.Contains(reasons(rec), gate.CodeApproved) {
		t.Errorf("with two approvals: %v", reasons(rec))
	}
	// With all approvals there is no glass to break, and nothing else is let
	// pass for it.
	if rec, err := h.BreakGlass(ctx, me, credit, "1.0.0", "prod", "why not"); err != nil || rec.BreakGlass {
		t.Errorf("%+v, %v", rec.Decision, err)
	}
	m.state(m.keys[verify.Withdrawal], model, attest.Withdrawal{Reason: "recall", WithdrawnAt: h.clock(), StatedBy: "risk"})
	if rec, err := h.BreakGlass(ctx, me, credit, "1.0.0", "prod", "outage"); err != nil || rec.Allow || !slices.Contains(reasons(rec), gate.CodeRecalled) {
		t.Errorf("a recalled model: %+v, %v", rec.Decision, err)
	}
	h.sound()
}

// Who pushed a version, or made one of what was pushed, is who its log says.
func TestSubmitters(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	m := newTeam(h)
	account := func(id string) access.Actor {
		return access.Actor{ID: id, Grants: []access.Grant{{Role: access.Pusher, Repositories: "**"}}}
	}
	ann, bob := account("user:00000000000000aa"), account("token:00000000000000bb")
	body := h.model(credit, nil, "application/x-model", "weights")
	d := digest.FromBytes(body)
	push := func(actor access.Actor, reference string) {
		t.Helper()
		if _, err := h.PutManifest(ctx, actor, credit, PutManifest{Reference: reference, Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, list ...string) {
		t.Helper()
		got, err := indexSource{h.Registry, credit}.Submitters(ctx, d)
		if err != nil || !slices.Equal(got, list) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, list)
		}
	}
	want("nothing was pushed")
	push(ann, string(d))
	want("pushed by digest", ann.ID)
	push(ann, string(d))
	push(bob, "candidate")
	want("tagged by another", ann.ID, bob.ID)
	push(me, "1.0.0")
	want("tagged again", ann.ID, bob.ID)
	h.crash()
	want("after a crash", ann.ID, bob.ID)
	if other, err := (indexSource{h.Registry, "other/m"}).Submitters(ctx, d); err != nil || len(other) != 0 {
		t.Errorf("in another repository: %v, %v", other, err)
	}

	// The gate compares them with who approves.
	if _, err := h.SetPolicy(ctx, me, []byte("version: 1\nrequireRelease: true\nrequireLineage: false\nrequireCertificate: false\nrequireApprovals: 1\nrequirePusher: true\n")); err != nil {
		t.Fatal(err)
	}
	anns := signingKey(t)
	m.apply(identity("ann", anns, "  accounts: ['"+ann.ID+"']\n", verify.Approval) + identity("bob", signingKey(t), "  accounts: ['"+bob.ID+"']\n", verify.Approval))
	m.sign(m.keys[verify.Release], d, releaseStatement(t, d), attest.PredicateSignature)
	approve := func(k *verify.Key, person string) {
		m.state(k, d, attest.Approval{Person: person, NameHash: "ab", Meaning: attest.MeaningApproval, Reason: "ok", ApprovedAt: h.clock()})
	}
	approve(anns, "ann")
	if rec := m.decide(); rec.Allow || !slices.Equal(reasons(rec), []string{gate.CodePusherApproval, gate.CodeNoApproval}) {
		t.Errorf("approved by who pushed it: %v", reasons(rec))
	}
	approve(m.keys[verify.Approval], "approval")
	if rec := m.decide(); !rec.Allow {
		t.Errorf("approved by another: %v", reasons(rec))
	}
	h.sound()
}

func TestPersons(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	auditor := access.Actor{ID: "user:a", Grants: []access.Grant{{Role: access.Auditor, Repositories: "**"}}}
	pusher := access.Actor{ID: "user:p", Grants: []access.Grant{{Role: access.Pusher, Repositories: "credit/**"}}}
	p, err := h.EnrollPerson(ctx, me, "p-17", "Ann Example")
	if err != nil || len(p.NameHash) != 64 {
		t.Fatalf("%+v, %v", p, err)
	}
	renamed, err := h.EnrollPerson(ctx, me, "p-17", "Ann Other")
	if err != nil || renamed.NameHash == p.NameHash {
		t.Fatalf("%+v, %v", renamed, err)
	}
	if got, err := h.Person(ctx, auditor, "p-17"); err != nil || got.Name != "Ann Other" || got.NameHash != renamed.NameHash {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := h.Person(ctx, pusher, "p-17"); err != nil || got.Name != "" || got.NameHash != renamed.NameHash {
		t.Errorf("for a pusher: %+v, %v", got, err)
	}
	if _, err := h.Person(ctx, access.Actor{}, "p-17"); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("for nobody: %v", err)
	}
	if _, err := h.Person(ctx, auditor, "p-18"); !errors.Is(err, ErrUnknown) {
		t.Errorf("nobody of that id: %v", err)
	}
	for _, actor := range []access.Actor{auditor, pusher} {
		if _, err := h.EnrollPerson(ctx, actor, "p-19", "X"); !errors.Is(err, access.ErrDenied) {
			t.Errorf("enrolled by %s: %v", actor.ID, err)
		}
		if _, err := h.ErasePerson(ctx, actor, "p-17"); !errors.Is(err, access.ErrDenied) {
			t.Errorf("erased by %s: %v", actor.ID, err)
		}
	}
	for _, id := range []string{"", "Ann Example", "a/b", strings.Repeat("x", 65)} {
		if _, err := h.EnrollPerson(ctx, me, id, "X"); !errors.Is(err, ErrDocumentInvalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	gone, err := h.ErasePerson(ctx, me, "p-17")
	if err != nil || gone.Erased.IsZero() || gone.NameHash != renamed.NameHash {
		t.Fatalf("%+v, %v", gone, err)
	}
	rows, _ := h.state()
	for k, v := range rows {
		if strings.Contains(v, "Ann") {
			t.Errorf("row %q still has the name", k)
		}
	}
	size := h.leaves()
	if _, err := h.ErasePerson(ctx, me, "p-17"); err != nil || h.leaves() != size {
		t.Errorf("erased twice: %v", err)
	}
	h.sound()
}

// A signature of model signing is verified from the manifest: no blob of the
// model is opened.
func TestModelSigning(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	body := h.model(credit, nil, "application/x-model", "weights", "tokenizer")
	model := h.put(credit, "1.0.0", body).Descriptor
	files, err := oms.Files(t.Context(), body, nil) // an opener that is called would panic
	if err != nil {
		t.Fatal(err)
	}
	attach := func(k *verify.Key, files []oms.File) Fact {
		t.Helper()
		statement, err := oms.Statement("scorer", files)
		if err != nil {
			t.Fatal(err)
		}
		referrer := m.sign(k, model.Digest, statement, oms.Predicate)
		facts := m.facts(model.Digest)
		i := slices.IndexFunc(facts, func(f Fact) bool { return f.Referrer == referrer })
		if i < 0 {
			t.Fatalf("no fact: %+v", facts)
		}
		return facts[i]
	}
	if f := attach(m.keys[verify.Release], files); f.Outcome != verify.OutcomeVerified || f.PredicateType != oms.Predicate || f.Role != "release" {
		t.Errorf("%+v", f)
	}
	if f := attach(m.keys[verify.Release], files[:1]); f.Outcome != oms.CodeUnsigned {
		t.Errorf("one file less was signed: %+v", f)
	}
	changed := slices.Clone(files)
	changed[0].Digest = strings.Repeat("0", 64)
	if f := attach(m.keys[verify.Release], changed); f.Outcome != oms.CodeChanged {
		t.Errorf("another file was signed: %+v", f)
	}
	if f := attach(m.keys[verify.Provenance], files); f.Outcome != verify.CodeRole {
		t.Errorf("signed without the role: %+v", f)
	}
	// It is no release of ours: what the gate asks for is a statement about
	// the manifest.
	if rec := m.decide(); !slices.Contains(reasons(rec), gate.CodeNoRelease) {
		t.Errorf("%v", reasons(rec))
	}
	h.sound()
}

// A bundle that was opened while its blob was stored is still judged with the
// manifest: by the trust file, the subject and the time of that moment.
func TestSignaturesOpenedAhead(t *testing.T) {
	h := newHouse(t)
	m := newTeam(h)
	if _, _, err := h.trustInForce(t.Context()); err != nil { // parses it
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		between func(model *digest.Digest)
		spoil   bool
		opened  bool
		code    string
	}{
		"nothing happens":        {func(*digest.Digest) {}, false, true, verify.OutcomeVerified},
		"the trust file changes": {func(*digest.Digest) { m.apply("", verify.Release) }, false, true, verify.CodeUnknownKey},
		"the window ends":        {func(*digest.Digest) { h.advance(2 * time.Hour) }, false, true, verify.CodeWindow},
		"it is attached elsewhere": {func(d *digest.Digest) {
			*d = h.put(credit, "other", h.model(credit, nil, "application/x-model", "others")).Descriptor.Digest
		}, false, true, verify.CodeSubject},
		"nobody's signature is good": {func(*digest.Digest) {}, true, false, verify.CodeUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			window := fmt.Sprintf("  notAfter: %s\n", h.clock().Add(time.Hour).UTC().Format(time.RFC3339))
			m.apply(identity("release", m.keys[verify.Release], window, verify.Release), verify.Release)
			if _, _, err := h.trustInForce(t.Context()); err != nil {
				t.Fatal(err)
			}
			model := h.put(credit, "latest", h.model(credit, nil, "application/x-model", name)).Descriptor.Digest
			h.blob(credit, "{}")
			bundle, err := verify.SignStatement(t.Context(), m.keys[verify.Release], releaseStatement(t, model))
			if err != nil {
				t.Fatal(err)
			}
			if tc.spoil {
				var b map[string]any
				if err := json.Unmarshal(bundle, &b); err != nil {
					t.Fatal(err)
				}
				sig := b["dsseEnvelope"].(map[string]any)["signatures"].([]any)[0].(map[string]any)
				sig["sig"] = base64.StdEncoding.EncodeToString([]byte("another"))
				if bundle, err = json.Marshal(b); err != nil {
					t.Fatal(err)
				}
			}
			d := h.blob(credit, string(bundle)).Digest
			h.ahead.mu.Lock()
			o := h.ahead.found[d]
			h.ahead.mu.Unlock()
			if o == nil {
				t.Fatal("nobody looked at the bundle")
			}
			if <-o.done; (o.bundle != nil) != tc.opened {
				t.Fatalf("opened ahead: %v", o.bundle != nil)
			}
			tc.between(&model)
			ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: model, Size: 1}, bundle, attest.PredicateSignature, h.clock())
			if err != nil {
				t.Fatal(err)
			}
			h.put(credit, string(ref.Descriptor.Digest), ref.Manifest)
			if facts := m.facts(model); len(facts) != 1 || facts[0].Outcome != tc.code {
				t.Errorf("%+v, want %s", facts, tc.code)
			}
			if len(h.ahead.found) != 0 || len(h.ahead.order) != 0 {
				t.Errorf("%d bundles are kept", len(h.ahead.found))
			}
		})
	}
	// What is not sent its manifest does not stay for ever.
	for i := range 2 * aheadKept {
		h.ahead.add(digest.FromString(fmt.Sprint(i)), &opening{})
	}
	if len(h.ahead.found) != aheadKept || len(h.ahead.order) != aheadKept {
		t.Errorf("%d bundles are kept, and %d in order", len(h.ahead.found), len(h.ahead.order))
	}
	h.sound()
}

// A suspension is in the status list until it ends or is lifted where it was
// stated.
func TestSuspension(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	m := newTeam(h)
	_, certificate := m.certified()
	h.advance(time.Minute)
	suspend := func(until time.Duration) {
		t.Helper()
		m.state(m.keys[verify.Withdrawal], certificate, attest.Withdrawal{Reason: "under review", WithdrawnAt: h.clock(), StatedBy: "lab", Until: h.clock().Add(until)})
	}
	// want also asks offline, with the list alone.
	key, err := verify.NewKey(h.id.Status)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := verify.ParseTrust(m.yaml(identity("server", key, "", verify.Withdrawal)))
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, suspended bool) {
		t.Helper()
		if rec := m.decide(); rec.Allow == suspended || suspended && !slices.Equal(reasons(rec), []string{gate.CodeSuspended}) {
			t.Errorf("%s: allow %v, %v", what, rec.Allow, reasons(rec))
		}
		signed, err := h.StatusList(ctx, me)
		if err != nil {
			t.Fatal(err)
		}
		s, err := verify.ParseStatus(signed.Envelope, trust, verify.Context{Repository: credit, Now: h.clock()})
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := s.List.Find(certificate); ok != suspended || ok && !h.clock().Before(e.Until) {
			t.Errorf("%s: listed %v: %+v", what, ok, e)
		}
	}
	want("before", false)
	suspend(6 * time.Hour)
	want("suspended", true)
	h.crash()
	want("after a crash", true)
	h.advance(6*time.Hour - time.Minute)
	want("a minute before the end", true)
	h.advance(time.Minute)
	want("at the end", false)
	suspend(6 * time.Hour)
	want("suspended again", true)
	// Elsewhere somebody may lift what is elsewhere.
	elsewhere := signingKey(t)
	m.apply(strings.Replace(identity("elsewhere", elsewhere, "", verify.Withdrawal), "'**'", "'other/*'", 1))
	h.advance(time.Minute)
	lift, err := attest.NewStatement(certificate, attest.Withdrawal{Reason: "fine", WithdrawnAt: h.clock(), StatedBy: "x", Until: h.clock()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := verify.SignStatement(ctx, elsewhere, lift)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := verify.AttachBundle(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: certificate, Size: 1}, b, attest.PredicateWithdrawal, h.clock())
	if err != nil {
		t.Fatal(err)
	}
	h.blob("other/m", "{}")
	h.blob("other/m", string(ref.Signed))
	h.put("other/m", string(ref.Descriptor.Digest), ref.Manifest)
	if list, err := h.Facts(ctx, me, "other/m", certificate); err != nil || len(list) != 1 || list[0].Outcome != verify.OutcomeVerified {
		t.Fatalf("%+v, %v", list, err)
	}
	want("lifted elsewhere", true)
	m.sign(m.keys[verify.Release], certificate, lift, attest.PredicateWithdrawal)
	want("lifted without the role", true)
	m.sign(m.keys[verify.Withdrawal], certificate, lift, attest.PredicateWithdrawal)
	want("lifted", false)
	h.advance(time.Minute)
	m.state(m.keys[verify.Withdrawal], certificate, attest.Withdrawal{Reason: "a mistake", WithdrawnAt: h.clock(), StatedBy: "lab"})
	h.advance(time.Minute)
	suspend(0)
	if rec := m.decide(); rec.Allow || !slices.Contains(reasons(rec), gate.CodeWithdrawn) {
		t.Errorf("what was withdrawn for good was lifted: %v", reasons(rec))
	}
	if l, err := h.StatusList(ctx, me); err != nil || len(l.List.Withdrawn) != 1 || !l.List.Withdrawn[0].Until.IsZero() {
		t.Errorf("%+v, %v", l.List, err)
	}
	h.sound()
}
