package registry

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/store"
)

// schemaVersion is the version of the table below and of the rows in it.
// A data directory with another version is refused at start.
const schemaVersion = 3

// A class says what kind of truth a family of keys holds.
type class int

const (
	// record: what an auditor may ask about. A change that touches a record
	// family carries an event, and the other way round; the sequencer
	// refuses everything else.
	record class = iota + 1

	// operational: what the server needs to do its work. Losing it loses no
	// history.
	operational

	// sequenced: written by the sequencer itself, with each event.
	sequenced
)

// families is the one table of everything in the DB: a key is its family's
// name, a zero byte, and parts separated by zero bytes. Names, tags and
// digests have no zero bytes; numbers are big-endian, so that they sort.
// Values are JSON, except where bytes are said.
var families = map[string]struct {
	class class
	key   string // parts, for people
	value string
}{
	"schema":       {operational, "", "schemaVersion"},
	"repo":         {record, "repository", "repoRow: a repository that was pushed to"},
	"manifest":     {record, "digest", "manifestRow: the bytes of a manifest, or where they are"},
	"held":         {record, "repository, digest", "heldRow: a manifest in a repository"},
	"holder":       {record, "manifest digest, repository", "empty: repositories that hold the manifest"},
	"tag":          {record, "repository, tag", "tagRow: what a tag names now"},
	"tagged":       {record, "repository, digest, tag", "empty: tags that name the manifest now"},
	"tagmove":      {record, "repository, tag, leaf index (8 bytes)", "tagMoveRow: each move, for as-of questions"},
	"version":      {record, "repository, number (4 bytes)", "versionRow: a model version"},
	"versionof":    {record, "repository, digest", "number (4 bytes)"},
	"referrer":     {record, "repository, subject, 2^63-1 - leaf index (8 bytes), digest", "OCI descriptor"},
	"uses":         {record, "blob or manifest digest, repository, manifest digest", "empty: who names this content"},
	"fact":         {record, "repository, subject, referrer digest", "factRow: what verification said at push"},
	"edge":         {record, "object digest, repository, subject digest, statement digest", "edgeRow: lineage, found from its object"},
	"deployed":     {record, "environment, from (8 bytes, ns), statement digest", "deployedRow"},
	"withdrawn":    {record, "digest, repository, statement digest", "withdrawnRow: what a verified statement takes back"},
	"person":       {record, "id, leaf index (8 bytes)", "personRow: the name of a person; erasable, statements have its salted hash"},
	"review":       {operational, "", "reviewRow: how far statements were verified again under the trust file"},
	"document":     {record, "kind (trust, policy), leaf index (8 bytes)", "documentRow: each version of it"},
	"decision":     {record, "leaf index (8 bytes)", "the decision, canonical JSON bytes"},
	"allowed":      {operational, "hash of an allow", "allowedRow: identical allows are counted"},
	"dropped":      {record, "repository, blob digest, leaf index (8 bytes)", "empty: a blob was deleted or collected"},
	"quarantined":  {record, "digest", "quarantinedRow: content whose bytes are damaged or gone"},
	"token":        {record, "id", "tokenRow: what a program logs in with; only a hash of its secret"},
	"reason":       {record, "leaf index (8 bytes)", "reasonRow: free text; erasable, the leaf has its salted hash"},
	"blob":         {operational, "digest", "blobRow: where the bytes are"},
	"linked":       {operational, "repository, blob digest", "linkedRow: the repository has the blob; a lease until a manifest names it"},
	"linkedin":     {operational, "blob digest, repository", "empty: repositories that have the blob"},
	"states":       {operational, "blob digest, group (4 bytes)", "states of the blob's hash after its pieces, 256 of them; see attest.Pieces"},
	"upload":       {operational, "id", "uploadRow: a session"},
	"cursor":       {operational, "follower", "index of the first leaf that it has not followed"},
	"uploadstates": {operational, "id, group (4 bytes)", "the same, of a session up to its last mark"},
	"log":          {sequenced, "", "logRow: size and time of the newest leaf"},
	"leaf":         {sequenced, "index (8 bytes)", "the leaf's bytes"},
	"hash":         {sequenced, "index of a stored hash (8 bytes)", "32 bytes"},
	"about":        {sequenced, "digest, leaf index (8 bytes)", "empty: leaves that name the digest"},
}

// key builds a key of a family from its parts.
func key(family string, parts ...string) []byte {
	if _, ok := families[family]; !ok {
		panic("registry: no key family " + family) // a typing mistake in this package
	}
	n := len(family) + 1
	for _, p := range parts {
		n += len(p) + 1
	}
	k := make([]byte, 0, n)
	k = append(k, family...)
	for _, p := range parts {
		k = append(k, 0)
		k = append(k, p...)
	}
	return k
}

// under is the range of all keys of a family that begin with these parts.
func under(family string, parts ...string) store.Range {
	return store.Prefix(append(key(family, parts...), 0))
}

// familyOf returns the family of a key.
func familyOf(k []byte) string {
	name, _, _ := bytes.Cut(k, []byte{0})
	return string(name)
}

// parts splits what follows the family in a key whose parts are all text.
func parts(k []byte) []string {
	all := strings.Split(string(k), "\x00")
	return all[1:]
}

// number is a part that sorts like the number.
func number(n int64) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// number32 is a shorter one.
func number32(n int) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// lastNumber reads the number at the end of a key or the whole of a value.
func lastNumber(k []byte) int64 {
	return int64(binary.BigEndian.Uint64(k[len(k)-8:]))
}

// newest is a part that sorts newer leaves first.
func newest(index int64) string { return number(1<<63 - 1 - index) }

type (
	repoRow struct {
		Created time.Time `json:"created"`
	}
	manifestRow struct {
		MediaType string    `json:"mediaType"`
		Size      int64     `json:"size"`
		Body      []byte    `json:"body,omitempty"` // up to inlineManifest bytes …
		Blob      store.Key `json:"blob,omitempty"` // … or where they are
	}
	heldRow struct {
		MediaType    string        `json:"mediaType"`
		ArtifactType string        `json:"artifactType,omitempty"`
		Size         int64         `json:"size"`
		Subject      digest.Digest `json:"subject,omitempty"`
		Index        int64         `json:"index"`
		At           time.Time     `json:"at"`
		Uses         []string      `json:"uses,omitempty"` // blobs and manifests it names
	}
	tagRow struct {
		Digest digest.Digest `json:"digest"`
		Index  int64         `json:"index"`
		At     time.Time     `json:"at"`
	}
	tagMoveRow struct {
		From  digest.Digest `json:"from,omitempty"`
		To    digest.Digest `json:"to,omitempty"` // "" when the tag was deleted
		At    time.Time     `json:"at"`
		Actor string        `json:"actor"`
	}
	versionRow struct {
		Digest digest.Digest `json:"digest"`
		Tag    string        `json:"tag"` // the one it was born with
		Index  int64         `json:"index"`
		At     time.Time     `json:"at"`
	}
	blobRow struct {
		Key  store.Key `json:"key"`
		Size int64     `json:"size"`
	}
	linkedRow struct {
		At time.Time `json:"at"` // when the repository got it; see leases
	}
	logRow struct {
		Size int64     `json:"size"`
		At   time.Time `json:"at"`
	}
	reasonRow struct {
		Text string `json:"text"`
		Salt []byte `json:"salt"`
	}
)

// encode renders a row's value.
func encode(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("registry: encoding a %T: %v", v, err)) // rows are plain data
	}
	return raw
}

// load reads a row into v and reports whether it is there.
func load(r store.Reader, k []byte, v any) (bool, error) {
	raw, err := r.Get(k)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("row %q is damaged: %w", k, err)
	}
	return true, nil
}

// exists reports whether a row is there.
func exists(r store.Reader, k []byte) (bool, error) {
	_, err := r.Get(k)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// decode reads the value of a scanned row.
func decode(row store.Row, v any) error {
	if err := json.Unmarshal(row.Value, v); err != nil {
		return fmt.Errorf("row %q is damaged: %w", row.Key, err)
	}
	return nil
}
