package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
)

// An Artifact is one of our documents as an OCI artifact. The same documents
// give the same bytes.
type Artifact struct {
	Descriptor ocispec.Descriptor
	Manifest   []byte
	Blobs      []Blob
}

// A Blob is content an artifact names.
type Blob struct {
	Descriptor ocispec.Descriptor
	Data       []byte
}

// A Fetch returns the bytes of a manifest or blob with the digest checked.
type Fetch func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)

type part struct {
	title, mediaType string
	data             []byte
}

func newArtifact(artifactType string, subject *ocispec.Descriptor, parts []part) (*Artifact, error) {
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: config, Subject: subject,
	}
	a := &Artifact{Blobs: []Blob{{config, ocispec.DescriptorEmptyJSON.Data}}}
	for _, p := range parts {
		d := ocispec.Descriptor{
			MediaType: p.mediaType, Digest: digest.FromBytes(p.data), Size: int64(len(p.data)),
			Annotations: map[string]string{ocispec.AnnotationTitle: p.title},
		}
		m.Layers = append(m.Layers, d)
		a.Blobs = append(a.Blobs, Blob{d, p.data})
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	a.Manifest = body
	a.Descriptor = ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: artifactType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	return a, nil
}

// file returns the bytes of a part.
func (a *Artifact) file(title string) []byte {
	for _, b := range a.Blobs {
		if b.Descriptor.Annotations[ocispec.AnnotationTitle] == title {
			return b.Data
		}
	}
	return nil
}

// readParts fetches the parts of an artifact of a type.
func readParts(ctx context.Context, fetch Fetch, desc ocispec.Descriptor, artifactType string, titles ...string) (map[string][]byte, ocispec.Manifest, error) {
	raw, err := fetch(ctx, desc)
	if err != nil {
		return nil, ocispec.Manifest{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, m, fmt.Errorf("artifact %s: %w", desc.Digest, err)
	}
	if m.ArtifactType != artifactType {
		return nil, m, fmt.Errorf("%s is of type %s, not %s", desc.Digest, m.ArtifactType, artifactType)
	}
	found := map[string]ocispec.Descriptor{}
	for _, l := range m.Layers {
		found[l.Annotations[ocispec.AnnotationTitle]] = l
	}
	out := map[string][]byte{}
	for _, t := range titles {
		l, ok := found[t]
		if !ok {
			return nil, m, fmt.Errorf("artifact %s has no %s", desc.Digest, t)
		}
		if out[t], err = fetch(ctx, l); err != nil {
			return nil, m, fmt.Errorf("artifact %s: %s: %w", desc.Digest, t, err)
		}
	}
	return out, m, nil
}

// Names of the parts of artifacts.
const (
	fileSuite        = "suite.json"
	fileCriteria     = "criteria.json"
	fileCases        = "cases.jsonl"
	fileTensors      = "tensors.safetensors"
	fileTexts        = "texts.jsonl"
	filePlan         = "plan.json"
	fileReplay       = "replay.json"
	fileObservations = "observations.jsonl"
	fileReport       = "report.json"
	fileReportHTML   = "report.html"
	fileEnvironment  = "environment.json"
)

// Artifact renders the suite, its sealed cases closed.
func (s *Suite) Artifact() (*Artifact, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	shown, tensorsShown, textsShown := s.public()
	suite, err := attest.Marshal(s.Document)
	if err != nil {
		return nil, err
	}
	criteria, err := attest.Marshal(s.Criteria)
	if err != nil {
		return nil, err
	}
	cases, err := marshalLines(shown)
	if err != nil {
		return nil, err
	}
	parts := []part{{fileSuite, attest.SuiteDocumentType, suite}, {fileCases, attest.CasesType, cases}}
	if s.ofRequests() {
		var list []attest.Text // in the order of the cases
		for _, c := range shown {
			if t, ok := textsShown[c.ID]; ok {
				list = append(list, t)
			}
		}
		texts, err := marshalLines(list)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{fileTexts, attest.TextsType, texts})
	}
	if !s.ofTexts() {
		tensors, err := writeTensors(tensorsShown)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{fileTensors, attest.TensorsType, tensors})
	}
	return newArtifact(attest.SuiteType, nil, append(parts, part{fileCriteria, attest.CriteriaType, criteria}))
}

// ReadSuite fetches and checks a suite. Its sealed part, if it has one, is
// closed: see [Suite.Open].
func ReadSuite(ctx context.Context, fetch Fetch, desc ocispec.Descriptor) (*Suite, error) {
	files, _, err := readParts(ctx, fetch, desc, attest.SuiteType, fileSuite, fileCriteria, fileCases)
	if err != nil {
		return nil, err
	}
	s := &Suite{}
	if err := attest.Unmarshal(files[fileSuite], &s.Document); err != nil {
		return nil, fmt.Errorf("%s: %w", fileSuite, err)
	}
	if err := attest.Unmarshal(files[fileCriteria], &s.Criteria); err != nil {
		return nil, fmt.Errorf("%s: %w", fileCriteria, err)
	}
	if s.Cases, err = unmarshalLines[attest.Case](files[fileCases]); err != nil {
		return nil, fmt.Errorf("%s: %w", fileCases, err)
	}
	s.shareSlices()
	var content []string
	if s.ofRequests() {
		content = append(content, fileTexts)
	}
	if !s.ofTexts() {
		content = append(content, fileTensors)
	}
	parts, _, err := readParts(ctx, fetch, desc, attest.SuiteType, content...)
	if err != nil {
		return nil, err
	}
	if s.ofRequests() {
		list, err := unmarshalLines[attest.Text](parts[fileTexts])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fileTexts, err)
		}
		s.Texts = make(map[string]attest.Text, len(list))
		for _, t := range list {
			if _, ok := s.Texts[t.ID]; ok {
				return nil, fmt.Errorf("%s: case %s is there twice", fileTexts, t.ID)
			}
			s.Texts[t.ID] = t
		}
	}
	if !s.ofTexts() {
		if s.Tensors, err = readTensors(parts[fileTensors], path.Base); err != nil {
			return nil, err
		}
	}
	// fetch checked the digests, so a suite as it was read need not be rendered
	// again to know its own.
	s.digest, s.criteria = desc.Digest, digest.FromBytes(files[fileCriteria])
	return s, s.check()
}

// shareSlices lets cases of the same slices have one map of them: of a hundred
// thousand cases, these maps would be a third of the memory.
func (s *Suite) shareSlices() {
	known := map[string]map[string]string{}
	for i, c := range s.Cases {
		key := fmt.Sprint(c.Slice) // in the order of its keys
		if _, ok := known[key]; !ok {
			known[key] = c.Slice
		}
		s.Cases[i].Slice = known[key]
	}
}

// digests returns those of the suite's artifact and of its criteria.
func (s *Suite) digests() (suite, criteria digest.Digest, err error) {
	if s.digest != "" {
		return s.digest, s.criteria, nil
	}
	a, err := s.Artifact()
	if err != nil {
		return "", "", err
	}
	return a.Descriptor.Digest, digest.FromBytes(a.file(fileCriteria)), nil
}

func marshalLines[T any](list []T) ([]byte, error) {
	var b bytes.Buffer
	for i, x := range list {
		raw, err := attest.Marshal(x)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			b.Grow((len(raw) + len(raw)/16) * len(list)) // lines are much alike
		}
		b.Write(raw)
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

func unmarshalLines[T any](raw []byte) ([]T, error) { return unmarshalEach(raw, func(*T) {}) }

// unmarshalEach calls each for every line before it reads the next one.
func unmarshalEach[T any](raw []byte, each func(*T)) (list []T, err error) {
	list = make([]T, 0, bytes.Count(raw, []byte{'\n'}))
	for n := 1; len(raw) > 0; n++ {
		line, rest, _ := bytes.Cut(raw, []byte{'\n'})
		raw = rest
		if len(line) == 0 {
			continue
		}
		var x T
		if err := attest.Unmarshal(line, &x); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		each(&x)
		list = append(list, x)
	}
	return list, nil
}

// EnvironmentArtifact renders an environment document.
func EnvironmentArtifact(e attest.Environment) (*Artifact, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	raw, err := attest.Marshal(e)
	if err != nil {
		return nil, err
	}
	return newArtifact(attest.EnvironmentType, nil, []part{{fileEnvironment, attest.EnvironmentDocument, raw}})
}

// ReadEnvironment fetches and checks an environment document.
func ReadEnvironment(ctx context.Context, fetch Fetch, desc ocispec.Descriptor) (attest.Environment, error) {
	var e attest.Environment
	files, _, err := readParts(ctx, fetch, desc, attest.EnvironmentType, fileEnvironment)
	if err != nil {
		return e, err
	}
	if err := attest.Unmarshal(files[fileEnvironment], &e); err != nil {
		return e, fmt.Errorf("%s: %w", fileEnvironment, err)
	}
	return e, e.Validate()
}

// A Replayed is a finished replay with everything a verdict follows from.
type Replayed struct {
	Suite        *Suite
	Plan         attest.Plan
	PlanDigest   digest.Digest
	Earlier      []attest.Plan // that it continues, the latest first
	Environment  attest.Environment
	Replay       attest.Replay
	Observations []attest.Observation
}

// PlanArtifact renders a plan, attached to its model.
func PlanArtifact(p attest.Plan, model ocispec.Descriptor) (*Artifact, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	raw, err := attest.Marshal(p)
	if err != nil {
		return nil, err
	}
	return newArtifact(attest.PlanType, subject(model), []part{{filePlan, attest.PlanDocumentType, raw}})
}

func subject(d ocispec.Descriptor) *ocispec.Descriptor {
	return &ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// Artifact renders a replay with its report, attached to its model.
func (r *Replayed) Artifact(model ocispec.Descriptor) (*Artifact, error) {
	a, _, err := r.Judged(model)
	return a, err
}

// Judged judges a replay and renders it, attached to its model.
func (r *Replayed) Judged(model ocispec.Descriptor) (*Artifact, attest.Report, error) {
	report, err := Judge(r)
	if err != nil {
		return nil, report, err
	}
	a, err := r.render(model, report)
	return a, report, err
}

func (r *Replayed) render(model ocispec.Descriptor, report attest.Report) (*Artifact, error) {
	replay, err := attest.Marshal(r.Replay)
	if err != nil {
		return nil, err
	}
	observations, err := marshalLines(r.Observations)
	if err != nil {
		return nil, err
	}
	environment, err := attest.Marshal(r.Environment)
	if err != nil {
		return nil, err
	}
	reportJSON, err := attest.Marshal(report)
	if err != nil {
		return nil, err
	}
	html, err := reportHTML(report)
	if err != nil {
		return nil, err
	}
	return newArtifact(attest.ReplayType, subject(model), []part{
		{fileReplay, attest.ReplayDocumentType, replay},
		{fileObservations, attest.ObservationsType, observations},
		{fileEnvironment, attest.EnvironmentDocument, environment},
		{fileReport, attest.ReportType, reportJSON},
		{fileReportHTML, attest.ReportHTMLType, html},
	})
}

// ReadReplayed fetches a replay and what it names: its plan, its suite, its
// environment. kept is the report that was stored beside it.
func ReadReplayed(ctx context.Context, fetch Fetch, desc ocispec.Descriptor, resolve func(context.Context, digest.Digest) (ocispec.Descriptor, error)) (r *Replayed, kept []byte, err error) {
	files, m, err := readParts(ctx, fetch, desc, attest.ReplayType, fileReplay, fileObservations, fileEnvironment, fileReport)
	if err != nil {
		return nil, nil, err
	}
	r = &Replayed{}
	if err := attest.Unmarshal(files[fileReplay], &r.Replay); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", fileReplay, err)
	}
	if err := attest.Unmarshal(files[fileEnvironment], &r.Environment); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", fileEnvironment, err)
	}
	if err := r.Replay.Validate(); err != nil {
		return nil, nil, err
	}
	if r.PlanDigest, err = r.Replay.Plan.Digest.OCI(); err != nil {
		return nil, nil, fmt.Errorf("plan: %w", err)
	}
	if model, err := r.Replay.Model.Digest.OCI(); err != nil || m.Subject == nil || m.Subject.Digest != model {
		return nil, nil, fmt.Errorf("replay %s is attached to another model than it measured", desc.Digest)
	}
	if r.Plan, err = readPlan(ctx, fetch, resolve, r.PlanDigest); err != nil {
		return nil, nil, err
	}
	for p := r.Plan; p.Continues != nil; r.Earlier = append(r.Earlier, p) {
		if len(r.Earlier) == maxContinued {
			return nil, nil, fmt.Errorf("plan %s continues more than %d others", r.PlanDigest, maxContinued)
		}
		d, err := p.Continues.Digest.OCI()
		if err != nil {
			return nil, nil, fmt.Errorf("plan: continues: %w", err)
		}
		if p, err = readPlan(ctx, fetch, resolve, d); err != nil {
			return nil, nil, err
		}
	}
	suite, err := r.Plan.Suite.Digest.OCI()
	if err != nil {
		return nil, nil, fmt.Errorf("plan: suite: %w", err)
	}
	suiteDesc, err := resolve(ctx, suite)
	if err != nil {
		return nil, nil, fmt.Errorf("suite %s: %w", suite, err)
	}
	if r.Suite, err = ReadSuite(ctx, fetch, suiteDesc); err != nil {
		return nil, nil, err
	}
	share := newSharing(r.Suite)
	if r.Observations, err = unmarshalEach(files[fileObservations], share.observation); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", fileObservations, err)
	}
	return r, files[fileReport], nil
}

// readPlan fetches a plan by its digest.
func readPlan(ctx context.Context, fetch Fetch, resolve func(context.Context, digest.Digest) (ocispec.Descriptor, error), d digest.Digest) (p attest.Plan, err error) {
	desc, err := resolve(ctx, d)
	if err != nil {
		return p, fmt.Errorf("plan %s: %w", d, err)
	}
	files, _, err := readParts(ctx, fetch, desc, attest.PlanType, filePlan)
	if err != nil {
		return p, err
	}
	if err := attest.Unmarshal(files[filePlan], &p); err != nil {
		return p, fmt.Errorf("%s: %w", filePlan, err)
	}
	return p, p.Validate()
}
