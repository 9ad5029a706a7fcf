package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/gate"
)

// A Finding is something that is not as it must be.
type Finding struct {
	What   string `json:"what"`
	Where  string `json:"where"`
	Remedy string `json:"remedy"`
}

// An FsckReport is what [Registry.Fsck] found, and what it looked at.
type FsckReport struct {
	Findings     []Finding `json:"findings"`
	Rows         int       `json:"rows"`
	Blobs        int       `json:"blobs"`
	BlobBytes    int64     `json:"blobBytes"`
	Manifests    int       `json:"manifests"`
	Repositories int       `json:"repositories"`
	Leaves       int64     `json:"leaves"`

	// Unnamed are bytes in storage that no row names: uploads that a crash
	// ended, which the server takes back.
	Unnamed      int   `json:"unnamed"`
	UnnamedBytes int64 `json:"unnamedBytes"`
}

// Remedies of findings.
const (
	restore  = "restore the data directory from a backup"
	pushBlob = "push the content again, or restore the data directory from a backup"
)

// Fsck checks everything that is stored: rows against each other, bytes
// against digests, storage against rows both ways, the log against its own
// tree and against the record. It writes nothing. Changes made while it runs
// can look like findings; run it on a server that is stopped.
func (r *Registry) Fsck(ctx context.Context) (FsckReport, error) {
	f := &checker{r: r, ctx: ctx, report: FsckReport{Findings: []Finding{}}, keys: map[store.Key]digest.Digest{}, state: map[string]digest.Digest{}, legacy: map[string]bool{}, revoked: map[string]bool{}}
	if v, ok := r.db.(interface{ Verify(context.Context) error }); ok {
		if err := v.Verify(ctx); err != nil {
			f.find(err.Error(), "the database's files", restore)
		}
	}
	err := r.view(ctx, func(rd store.Reader) error {
		f.rd = rd
		for _, step := range []func() error{f.rows, f.manifests, f.repositories, f.facts, f.log} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		// Rows that cannot be read are the finding, not a failure to look.
		f.find(err.Error(), "reading the database", restore)
		err = nil
	}
	if err == nil {
		err = f.blobs()
	}
	return f.report, err
}

type checker struct {
	r      *Registry
	ctx    context.Context
	rd     store.Reader
	report FsckReport
	keys   map[store.Key]digest.Digest // bytes that rows name

	// state is what the log comes to: keys of tags, manifests and facts, and
	// the digest each has, or "" if it was removed.
	state map[string]digest.Digest

	legacy map[string]bool // facts in state that follow from a tag

	revoked map[string]bool // tokens, by their rows
}

func (f *checker) find(what, where, remedy string) {
	f.report.Findings = append(f.report.Findings, Finding{what, where, remedy})
}

// scan calls fn for each row of a family; a damaged row is a finding.
func (f *checker) scan(family string, v any, fn func(k []byte) error) error {
	for row, err := range f.rd.Scan(under(family)) {
		if err != nil {
			return err
		}
		k := bytes.Clone(row.Key)
		if v != nil {
			if err := decode(row, v); err != nil {
				f.find(err.Error(), fmt.Sprintf("row %q", k), restore)
				continue
			}
		}
		if err := fn(k); err != nil {
			return err
		}
	}
	return nil
}

func (f *checker) has(k []byte) bool {
	ok, err := exists(f.rd, k)
	return err == nil && ok
}

// rows: every key is of a family.
func (f *checker) rows() error {
	for row, err := range f.rd.Scan(store.Range{KeysOnly: true}) {
		if err != nil {
			return err
		}
		f.report.Rows++
		if _, ok := families[familyOf(row.Key)]; !ok {
			f.find("a key of no family", fmt.Sprintf("row %q", row.Key), restore)
		}
	}
	return nil
}

// manifests: the bytes of each have its digest, and somebody holds it.
func (f *checker) manifests() error {
	var m manifestRow
	return f.scan("manifest", &m, func(k []byte) error {
		defer func() { m = manifestRow{} }()
		f.report.Manifests++
		d := digest.Digest(parts(k)[0])
		where := "manifest " + string(d)
		if checkDigest(d) != nil {
			f.find("its name is no digest", where, restore)
			return nil
		}
		if m.Blob != "" {
			f.keys[m.Blob] = d
		}
		body, err := f.r.manifestBytes(f.ctx, m)
		switch {
		case err != nil:
			f.find("its bytes cannot be read: "+err.Error(), where, pushBlob)
		case int64(len(body)) != m.Size || d.Algorithm().FromBytes(body) != d:
			f.find("its bytes do not have its digest", where, pushBlob)
		}
		for _, err := range f.rd.Scan(under("holder", string(d))) {
			return err
		}
		f.find("no repository holds it", where, restore)
		return nil
	})
}

// repositories: what manifests, tags, versions and referrers name is there.
func (f *checker) repositories() error {
	var created repoRow
	if err := f.scan("repo", &created, func([]byte) error { f.report.Repositories++; return nil }); err != nil {
		return err
	}
	var held heldRow
	err := f.scan("held", &held, func(k []byte) error {
		defer func() { held = heldRow{} }()
		repo, d := parts(k)[0], parts(k)[1]
		where := repo + "@" + d
		for what, row := range map[string][]byte{
			"its repository is unknown":              key("repo", repo),
			"its bytes are unknown":                  key("manifest", d),
			"the list of its holders lacks this one": key("holder", d, repo),
		} {
			if !f.has(row) {
				f.find(what, where, restore)
			}
		}
		for _, u := range held.Uses {
			if !f.has(key("linked", repo, u)) && !f.has(key("held", repo, u)) {
				f.find("it names "+u+", which the repository does not have", where, pushBlob)
			}
			if !f.has(key("uses", u, repo, d)) {
				f.find("the list of what uses "+u+" lacks it", where, restore)
			}
		}
		if held.Subject != "" && !f.has(key("referrer", repo, string(held.Subject), newest(held.Index), d)) {
			f.find("it is not listed among the referrers of "+string(held.Subject), where, restore)
		}
		l, err := leafAt(f.rd, held.Index)
		if err != nil || l.Event.Kind != EventManifestPut || !slices.Contains(l.Event.Digests, digest.Digest(d)) {
			f.find(fmt.Sprintf("log leaf %d does not record it", held.Index), where, restore)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var tag tagRow
	err = f.scan("tag", &tag, func(k []byte) error {
		repo, name := parts(k)[0], parts(k)[1]
		where := repo + ":" + name
		if !f.has(key("held", repo, string(tag.Digest))) {
			f.find("it names "+string(tag.Digest)+", which the repository does not have", where, restore)
		}
		var move tagMoveRow
		if ok, err := load(f.rd, key("tagmove", repo, name, number(tag.Index)), &move); err != nil || !ok || move.To != tag.Digest {
			f.find("its history does not say so", where, restore)
		}
		if !f.has(key("tagged", repo, string(tag.Digest), name)) {
			f.find("its manifest is not listed with it", where, restore)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = f.scan("tagged", nil, func(k []byte) error {
		p := parts(k)
		var tag tagRow
		if ok, err := load(f.rd, key("tag", p[0], p[2]), &tag); err != nil || !ok || string(tag.Digest) != p[1] {
			f.find("it is listed with tag "+p[2]+", which does not name it", p[0]+"@"+p[1], restore)
		}
		return nil
	})
	if err != nil {
		return err
	}
	next := map[string]int{}
	var version versionRow
	err = f.scan("version", &version, func(k []byte) error {
		repo := string(k[len("version")+1 : len(k)-5])
		next[repo]++
		n := versionNumber(k)
		where := fmt.Sprintf("%s version %d", repo, n)
		if n != next[repo] {
			f.find(fmt.Sprintf("the numbers before it are not dense: version %d is missing", next[repo]), where, restore)
			next[repo] = n
		}
		raw, err := f.rd.Get(key("versionof", repo, string(version.Digest)))
		if err != nil || len(raw) != 4 || versionNumber(raw) != n {
			f.find("its manifest is not listed as this version", where, restore)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var desc ocispec.Descriptor
	return f.scan("referrer", &desc, func(k []byte) error {
		defer func() { desc = ocispec.Descriptor{} }()
		repo := parts(k)[0]
		if !f.has(key("held", repo, string(desc.Digest))) {
			f.find("a referrer is listed that the repository does not have", repo+"@"+string(desc.Digest), restore)
		}
		return nil
	})
}

// facts: each belongs to a manifest, and what follows from it is there.
func (f *checker) facts() error {
	var fact factRow
	err := f.scan("fact", &fact, func(k []byte) error {
		defer func() { fact = factRow{} }()
		repo, referrer := parts(k)[0], parts(k)[2]
		where := "fact of " + repo + "@" + referrer
		if !f.has(key("held", repo, referrer)) {
			f.find("its manifest is not in the repository", where, restore)
		}
		for _, row := range fact.Rows {
			if !f.has(row) {
				f.find(fmt.Sprintf("row %q, which follows from it, is missing", row), where, restore)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var token tokenRow
	err = f.scan("token", &token, func(k []byte) error {
		defer func() { token = tokenRow{} }()
		l, err := leafAt(f.rd, token.Index)
		if err != nil || l.Event.Kind != EventTokenCreate || l.Event.Token != parts(k)[0] {
			f.find(fmt.Sprintf("log leaf %d does not record it", token.Index), "token "+parts(k)[0], restore)
		}
		if !token.Revoked.IsZero() {
			f.revoked[token.ID] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	var q quarantinedRow
	err = f.scan("quarantined", &q, func(k []byte) error {
		defer func() { q = quarantinedRow{} }()
		f.find("its bytes were damaged or lost, and were set aside at "+q.At.Format(time.RFC3339), parts(k)[0], pushBlob)
		if q.Key != "" {
			f.keys[q.Key] = digest.Digest(parts(k)[0])
		}
		return nil
	})
	if err != nil {
		return err
	}
	var edge edgeRow
	var deployed deployedRow
	var move tagMoveRow
	var withdrawn withdrawnRow
	var person personRow
	for family, row := range map[string]any{"edge": &edge, "deployed": &deployed, "tagmove": &move, "withdrawn": &withdrawn, "person": &person} {
		if err := f.scan(family, row, func([]byte) error { return nil }); err != nil {
			return err
		}
	}
	for _, family := range []string{"decision", "document"} {
		err := f.scan(family, nil, func(k []byte) error {
			index := lastNumber(k)
			l, err := leafAt(f.rd, index)
			if err != nil {
				f.find(fmt.Sprintf("log leaf %d does not record it", index), fmt.Sprintf("row %q", k), restore)
				return nil
			}
			if family == "decision" {
				body, err := f.rd.Get(k)
				if err != nil || !slices.Contains(l.Event.Digests, digest.FromBytes(body)) {
					f.find(fmt.Sprintf("it is not the decision that log leaf %d records", index), fmt.Sprintf("row %q", k), restore)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// log: every leaf is there, parses, and hashes to the tree that is stored.
func (f *checker) log() error {
	var log logRow
	if _, err := load(f.rd, key("log"), &log); err != nil {
		f.find(err.Error(), "log", restore)
		return nil
	}
	f.report.Leaves = log.Size
	hashes := map[int64]tlog.Hash{}
	own := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = hashes[x]
		}
		return out, nil
	})
	for i := range log.Size {
		where := fmt.Sprintf("log leaf %d", i)
		raw, err := f.rd.Get(key("leaf", number(i)))
		if err != nil {
			f.find("it is missing: "+err.Error(), where, restore)
			return nil
		}
		if canonical, err := reencode(raw); err != nil || !bytes.Equal(canonical, raw) {
			f.find("it is not a leaf in canonical form", where, restore)
		}
		first, stored, err := tlog.StoredHashes(i, raw, own)
		if err != nil {
			return err
		}
		for n, h := range stored {
			hashes[first+int64(n)] = h
			kept, err := f.rd.Get(key("hash", number(first+int64(n))))
			if err != nil || !bytes.Equal(kept, h[:]) {
				f.find("it does not hash to what the tree has", where, restore)
				break
			}
		}
		e, err := ParseLeaf(raw)
		if err != nil {
			continue
		}
		f.replay(i, e)
		for _, list := range [][]digest.Digest{e.Digests, e.Subjects} {
			for _, d := range list {
				if !f.has(key("about", string(d), number(i))) {
					f.find("it is not listed among the leaves about "+string(d), where, restore)
				}
			}
		}
	}
	f.compareReplayed()
	n := int64(0)
	if err := f.scan("leaf", nil, func([]byte) error { n++; return nil }); err != nil {
		return err
	}
	if n != log.Size {
		f.find(fmt.Sprintf("%d leaves are stored and the log has %d", n, log.Size), "log", restore)
	}
	return nil
}

// replay does again, on the side, what a leaf says was done, and checks the
// rows that are never removed afterwards.
func (f *checker) replay(index int64, e Event) {
	where := fmt.Sprintf("log leaf %d", index)
	need := func(what string, k []byte) {
		if !f.has(k) {
			f.find(what+" that it records is missing", where, restore)
		}
	}
	for _, t := range e.Tags {
		need("the move of tag "+t.Tag, key("tagmove", e.Repository, t.Tag, number(index)))
		f.state[string(key("tag", e.Repository, t.Tag))] = t.To
		// Facts that follow from a tag come and go with it.
		if subject, ok := verify.LegacyTag(t.Tag); ok {
			fact := func(d digest.Digest) string { return string(key("fact", e.Repository, string(subject), string(d))) }
			if t.From != "" && f.legacy[fact(t.From)] {
				f.state[fact(t.From)] = ""
			}
			if t.To != "" && e.Outcome != "" && f.state[fact(t.To)] == "" {
				f.state[fact(t.To)], f.legacy[fact(t.To)] = t.To, true
			}
		}
	}
	switch e.Kind {
	case EventManifestPut:
		if e.Version > 0 {
			need(fmt.Sprintf("version %d", e.Version), key("version", e.Repository, number32(e.Version)))
		}
		for _, d := range e.Digests {
			f.state[string(key("held", e.Repository, string(d)))] = d
			f.state[string(key("quarantined", string(d)))] = ""
			if e.Outcome != "" && len(e.Subjects) > 0 {
				f.state[string(key("fact", e.Repository, string(e.Subjects[0]), string(d)))] = d
			}
		}
	case EventManifestDelete:
		for _, d := range e.Digests {
			f.state[string(key("held", e.Repository, string(d)))] = ""
			if len(e.Subjects) > 0 {
				f.state[string(key("fact", e.Repository, string(e.Subjects[0]), string(d)))] = ""
			}
		}
	case EventBlobDelete, EventBlobCollect:
		for _, d := range e.Digests {
			need("the deletion of blob "+string(d), key("dropped", e.Repository, string(d), number(index)))
		}
	case EventQuarantine, EventHeal:
		for _, d := range e.Digests {
			f.state[string(key("quarantined", string(d)))] = ""
			if e.Kind == EventQuarantine {
				f.state[string(key("quarantined", string(d)))] = d
			}
		}
	case EventTokenCreate:
		need("the token", key("token", e.Token))
	case EventTokenRevoke:
		need("the token", key("token", e.Token))
		if !f.revoked[e.Token] {
			f.find("the token that it records as revoked is not", where, restore)
		}
		delete(f.revoked, e.Token)
	case EventPersonEnroll:
		need("the person", key("person", e.Person, number(index)))
	case EventDecision, EventBreakGlass:
		need("the decision", key("decision", number(index)))
	case EventTrust, EventPolicy:
		kind := documentTrust
		if e.Kind == EventPolicy {
			kind = documentPolicy
		}
		var d documentRow
		ok, err := load(f.rd, key("document", kind, number(index)), &d)
		if err != nil || !ok || !slices.Contains(e.Digests, d.Digest) || meaning(kind, d.Body) != d.Digest {
			f.find("the "+kind+" file that it records is missing or another one", where, restore)
		}
	}
}

// meaning is the digest of what a document says; "" if it does not parse.
func meaning(kind string, body []byte) digest.Digest {
	if kind == documentPolicy {
		p, err := gate.ParsePolicy(body)
		if err != nil {
			return ""
		}
		return p.Digest()
	}
	t, err := verify.ParseTrust(body)
	if err != nil {
		return ""
	}
	return t.Digest()
}

// compareReplayed compares what the log comes to with the rows.
func (f *checker) compareReplayed() {
	for id := range f.revoked {
		f.find("it is revoked and the log does not say so", "token "+id, restore)
	}
	for k, d := range f.state {
		if f.has([]byte(k)) != (d != "") {
			f.find("the log and this row disagree on whether it is there", fmt.Sprintf("row %q", k), restore)
		}
		var now tagRow
		if ok, err := load(f.rd, []byte(k), &now); familyOf([]byte(k)) == "tag" && d != "" && (err != nil || !ok || now.Digest != d) {
			f.find("the log says that the tag names "+string(d), fmt.Sprintf("row %q", k), restore)
		}
	}
}

func reencode(leaf []byte) ([]byte, error) {
	e, err := ParseLeaf(leaf)
	if err != nil {
		return nil, err
	}
	return encodeLeaf(e)
}

// blobs: every row has its bytes with the right digest, and all bytes have a
// row. It runs outside the view, since it reads for a long time.
func (f *checker) blobs() error {
	rows := map[digest.Digest]blobRow{}
	uploads := map[store.Key]bool{}
	err := f.r.view(f.ctx, func(rd store.Reader) error {
		f.rd = rd
		var b blobRow
		if err := f.scan("blob", &b, func(k []byte) error {
			rows[digest.Digest(parts(k)[0])] = b
			return nil
		}); err != nil {
			return err
		}
		var lease linkedRow
		if err := f.scan("linked", &lease, func(k []byte) error {
			p := parts(k)
			if !f.has(key("blob", p[1])) {
				f.find("the repository has a blob whose bytes are unknown", p[0]+"@"+p[1], pushBlob)
			}
			if !f.has(key("linkedin", p[1], p[0])) {
				f.find("the list of where the blob is lacks the repository", p[0]+"@"+p[1], restore)
			}
			return nil
		}); err != nil {
			return err
		}
		var u uploadRow
		return f.scan("upload", &u, func([]byte) error {
			uploads[u.Key] = true
			return nil
		})
	})
	if err != nil {
		f.find(err.Error(), "reading the database", restore)
	}
	for d, row := range rows {
		f.report.Blobs++
		f.report.BlobBytes += row.Size
		f.keys[row.Key] = d
		if err := f.blob(d, row); err != nil {
			if f.ctx.Err() != nil {
				return err
			}
			f.find(err.Error(), "blob "+string(d), pushBlob)
		}
	}
	for info, err := range f.r.blobs.List(f.ctx) {
		if err != nil {
			return err
		}
		if _, ok := f.keys[info.Key]; !ok && !uploads[info.Key] {
			f.report.Unnamed++
			f.report.UnnamedBytes += info.Size
		}
	}
	return nil
}

func (f *checker) blob(d digest.Digest, row blobRow) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	b, err := f.r.blobs.Open(f.ctx, row.Key)
	if errors.Is(err, store.ErrNotFound) {
		return errors.New("its bytes are gone")
	}
	if err != nil {
		return err
	}
	defer b.Close()
	digester := d.Algorithm().Digester()
	n, err := io.CopyBuffer(digester.Hash(), struct{ io.Reader }{b}, make([]byte, 1<<20))
	if err != nil {
		return fmt.Errorf("its bytes cannot be read: %w", err)
	}
	if n != row.Size || digester.Digest() != d {
		return fmt.Errorf("its %d bytes do not have its digest", n)
	}
	return nil
}
