// Package oms reads and makes signatures of OpenSSF Model Signing (model.sig,
// specification v1.0, and the form of the reference tool's v0.2): a signed
// list of a model's files.
//
// A registry has the digests of files already. Where a layer of an OCI
// manifest is the bare file, its digest is the layer's, and the signature is
// verified without opening a weight blob; only tar layers are read. That is so
// of signatures of whole files by SHA-256; those of pieces of files (shards),
// and by BLAKE2b and BLAKE3, have to have the files read: see [Hashing].
package oms

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// Predicate types: of the specification v1.0, and of the reference tool's v0.2,
// whose subjects are the files.
const (
	Predicate    = "https://model_signing/signature/v1.0"
	PredicateV02 = "https://model_signing/Digests/v0.1"
)

// SignatureFile is where a signature is kept beside the files it signs.
const SignatureFile = "model.sig"

// Reason codes, besides those of package verify.
const (
	CodeRoot        = "oms.root"        // the subject is not the digest of the list
	CodeMissing     = "oms.missing"     // a signed file is not there
	CodeChanged     = "oms.changed"     // a file is another one than was signed
	CodeUnsigned    = "oms.unsigned"    // a file is there that was not signed
	CodeUnsupported = "oms.unsupported" // what cannot be compared here: hashes that a registry does not have, links, archives
)

// Bounds of what is read.
const (
	maxResources = 100_000
	maxName      = 4096
)

// A File is a file of a model, or a piece of one.
type File struct {
	Name   string // relative, with slashes; of a piece "path:start:end"
	Digest string // hexadecimal; by SHA-256, unless a [Hashing] says otherwise
}

// A Signed is a list of files that somebody signed.
type Signed struct {
	Version string // "1.0" or "0.2"
	Root    digest.Digest
	Hashing Hashing
	Files   []File
	Ignored []string // paths that were not signed on purpose
}

// A Verified is a signature that verified over the files of a model.
type Verified struct {
	verify.SignedPayload
	Signed
}

type resource struct {
	Name      string `json:"name"`
	Algorithm string `json:"algorithm"`
	Digest    string `json:"digest"`
}

type predicate struct {
	Serialization struct {
		Method        string      `json:"method"`
		HashType      string      `json:"hash_type"`
		AllowSymlinks bool        `json:"allow_symlinks"`
		ShardSize     json.Number `json:"shard_size,omitempty"`
		IgnorePaths   []string    `json:"ignore_paths,omitempty"`
	} `json:"serialization"`
	Resources []resource `json:"resources"`
}

func fail(code, remedy, format string, args ...any) error {
	return &verify.Failure{Code: code, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

const signAgain = "sign again: assay sign --oms"

// Parse reads the payload of a signature, strictly. The error is always a
// *[verify.Failure].
func Parse(payload []byte) (*Signed, error) {
	s, err := attest.ParseStatement(payload)
	if err != nil {
		return nil, fail(verify.CodeStatement, signAgain, "%v", err)
	}
	switch s.PredicateType {
	case Predicate:
		return parseV1(s)
	case PredicateV02:
		return parseV02(payload)
	}
	return nil, fail(verify.CodePredicate, signAgain, "predicate type %q is none of model signing", s.PredicateType)
}

func parseV1(s attest.Statement) (*Signed, error) {
	var p predicate
	if err := attest.Unmarshal(s.Predicate, &p); err != nil {
		return nil, fail(verify.CodeStatement, signAgain, "%v", err)
	}
	switch {
	case len(s.Subject) != 1:
		return nil, fail(verify.CodeStatement, signAgain, "it has %d subjects; one is the digest of the list", len(s.Subject))
	case len(p.Resources) == 0:
		return nil, fail(verify.CodeStatement, signAgain, "it names no files")
	case len(p.Resources) > maxResources:
		return nil, fail(verify.CodeTooLarge, "", "it names %d files, at most %d are read", len(p.Resources), maxResources)
	}
	h, err := hashingOf(p.Serialization.Method, p.Serialization.HashType, p.Serialization.ShardSize)
	if err != nil {
		return nil, err
	}
	out := &Signed{Version: "1.0", Hashing: h, Ignored: p.Serialization.IgnorePaths}
	root := sha256.New()
	for i, r := range p.Resources {
		if !h.is(r.Algorithm) {
			return nil, fail(CodeUnsupported, "sign all files with one hash", "resource %d has a %q digest", i+1, r.Algorithm)
		}
		raw, err := hex.DecodeString(r.Digest)
		if err != nil || len(raw) != h.size() || r.Digest != strings.ToLower(r.Digest) {
			return nil, fail(verify.CodeStatement, signAgain, "resource %d: %q is no %s digest", i+1, r.Digest, h.Hash)
		}
		root.Write(raw)
		out.Files = append(out.Files, File{r.Name, r.Digest})
	}
	// "digest.sha256 MUST be the SHA-256 over the concatenation of the raw
	// digests, in the order in which resources are listed" (model signing v1.0,
	// Statement).
	out.Root = digest.NewDigestFromBytes(digest.SHA256, root.Sum(nil))
	if got := s.Subject[0].Digest["sha256"]; got != out.Root.Encoded() {
		return nil, fail(CodeRoot, signAgain, "its subject is %s, and the digest of the list %s", got, out.Root.Encoded())
	}
	return out, out.checkNames()
}

// parseV02 reads the form in which the files are the subjects. Its subjects
// have annotations, which say how each was hashed.
func parseV02(payload []byte) (*Signed, error) {
	var s struct {
		Subject []struct {
			Name        string            `json:"name"`
			Digest      map[string]string `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		return nil, fail(verify.CodeStatement, signAgain, "%v", err)
	}
	out := &Signed{Version: "0.2", Hashing: WholeFiles}
	root := sha256.New()
	for i, f := range s.Subject {
		if how := f.Annotations["actual_hash_algorithm"]; how != "file-sha256" {
			return nil, fail(CodeUnsupported, "sign whole files with sha256", "subject %d was hashed by %q", i+1, how)
		}
		raw, err := hex.DecodeString(f.Digest["sha256"])
		if err != nil || len(raw) != sha256.Size {
			return nil, fail(verify.CodeStatement, signAgain, "subject %d has no sha256 digest", i+1)
		}
		root.Write(raw)
		out.Files = append(out.Files, File{f.Name, f.Digest["sha256"]})
	}
	out.Root = digest.NewDigestFromBytes(digest.SHA256, root.Sum(nil))
	return out, out.checkNames()
}

var drive = regexp.MustCompile(`^[A-Za-z]:`)

// checkNames refuses what could name a file outside of the model, or one file
// twice.
func (s *Signed) checkNames() error {
	seen, alone := map[string]bool{}, s.alone()
	for _, f := range s.Files {
		n, ok := s.Hashing.path(f.Name)
		switch {
		case !ok:
			return fail(verify.CodeStatement, signAgain, "%q names no piece of a file of %d bytes", f.Name, s.Hashing.Shard)
		case n == "." && alone: // the model is one file
		case n == "" || len(n) > maxName || !utf8.ValidString(n) || strings.ContainsAny(n, "\x00\\") || drive.MatchString(n),
			path.IsAbs(n) || path.Clean(n) != n || n == "." || n == ".." || strings.HasPrefix(n, "../"):
			return fail(verify.CodeStatement, signAgain, "%q is no name of a file of the model", n)
		}
		if seen[f.Name] {
			return fail(verify.CodeStatement, signAgain, "%q is named twice", f.Name)
		}
		seen[f.Name] = true
	}
	return nil
}

// alone reports whether all that was signed is of one file without a name.
func (s *Signed) alone() bool {
	return !slices.ContainsFunc(s.Files, func(f File) bool { n, _ := s.Hashing.path(f.Name); return n != "." })
}

// Check compares the list with the files of a model, hashed as the signature
// says: all that were signed are there as they were, and nothing else is. Files
// under the paths in ignore, and under those that the signer ignored, may be
// there besides; and, of a signature of pieces, files without any bytes, which
// have none.
func (s *Signed) Check(files []File, ignore ...string) error {
	ignored := slices.Concat(ignore, s.Ignored, defaultIgnored)
	isIgnored := func(f File) bool {
		name, _ := s.Hashing.path(f.Name)
		return slices.ContainsFunc(ignored, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") })
	}
	have := map[string]string{}
	for _, f := range files {
		if old, ok := have[f.Name]; ok && old != f.Digest {
			return fail(CodeChanged, "", "the model has two files of the name %q", f.Name)
		}
		have[f.Name] = f.Digest
	}
	if len(s.Files) > 0 && s.alone() {
		// Whatever its one file is called.
		files = slices.DeleteFunc(slices.Clone(files), isIgnored)
		have = map[string]string{}
		names := map[string]bool{}
		for i, f := range files {
			name, _ := s.Hashing.path(f.Name)
			names[name] = true
			files[i].Name = "." + strings.TrimPrefix(f.Name, name)
			have[files[i].Name] = f.Digest
		}
		if len(names) != 1 {
			return fail(CodeUnsigned, signAgain, "it signs a single file, and the model has %d", len(names))
		}
	}
	signed := map[string]bool{}
	for _, f := range s.Files {
		got, ok := have[f.Name]
		switch {
		case !ok:
			return fail(CodeMissing, "push the whole model", "%s was signed and is not there", f.Name)
		case got != f.Digest:
			return fail(CodeChanged, signAgain, "%s is another file than was signed", f.Name)
		}
		signed[f.Name] = true
	}
	for _, f := range files {
		if !signed[f.Name] && !isIgnored(f) {
			return fail(CodeUnsigned, signAgain, "%s is there and was not signed", f.Name)
		}
	}
	return nil
}

// defaultIgnored are what the reference tool leaves out, at the top level.
var defaultIgnored = []string{".git", ".gitignore", ".gitattributes", ".github", SignatureFile}

// Verify verifies a signature over the files of a model, by their SHA-256. Its
// signer needs the role release. The error is always a *[verify.Failure].
func Verify(raw []byte, files []File, trust *verify.Trust, c verify.Context, ignore ...string) (*Verified, error) {
	v, err := VerifySignature(raw, trust, c)
	if err != nil {
		return nil, err
	}
	if v.Hashing != WholeFiles {
		return nil, fail(CodeUnsupported, "check it with 'assay verify --oms', which reads the files; or sign whole files with sha256: assay sign --oms",
			"it signs %s, for which the files would have to be read", v.Hashing)
	}
	return v, v.Check(files, ignore...)
}

// VerifySignature verifies a signature and reads the list, and compares it
// with no files.
func VerifySignature(raw []byte, trust *verify.Trust, c verify.Context) (*Verified, error) {
	if len(raw) > verify.MaxBundle {
		return nil, fail(verify.CodeTooLarge, "", "the signature has %d bytes, at most %d are read", len(raw), verify.MaxBundle)
	}
	bundle, err := withoutKeys(raw)
	if err != nil {
		return nil, fail(verify.CodeBundleInvalid, signAgain, "it is no Sigstore bundle: %v", err)
	}
	p, err := verify.Payload(bundle, verify.Release, trust, c, encodingV02)
	if err != nil {
		return nil, err
	}
	if p.Type != attest.InTotoPayloadType {
		return nil, fail(verify.CodeStatement, signAgain, "its payload is of type %q", p.Type)
	}
	s, err := Parse(p.Payload)
	if err != nil {
		return nil, err
	}
	return &Verified{*p, *s}, nil
}

// withoutKeys takes out of a bundle what the reference tool wrote up to v1.0
// and the bundle format does not have: the public key itself. It says nothing:
// whose keys count is in the trust file.
func withoutKeys(raw []byte) ([]byte, error) {
	if err := attest.CheckJSON(raw); err != nil {
		return nil, err
	}
	var b map[string]json.RawMessage
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, err
	}
	var material, key map[string]json.RawMessage
	if json.Unmarshal(b["verificationMaterial"], &material) != nil || json.Unmarshal(material["publicKey"], &key) != nil || key == nil {
		return raw, nil
	}
	delete(key, "rawBytes")
	delete(key, "keyDetails")
	var err error
	if material["publicKey"], err = json.Marshal(key); err != nil {
		return nil, err
	}
	if b["verificationMaterial"], err = json.Marshal(material); err != nil {
		return nil, err
	}
	return json.Marshal(b)
}

// encodingV02 is how the reference tool's v0.2 encoded a payload before it
// signed it: with another name of the encoding, and the payload as Python
// prints bytes.
func encodingV02(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEV1 %d %s %d %s", len(payloadType), payloadType, len(payload), pythonBytes(payload))
}

// pythonBytes renders bytes as repr does: b'…', or b"…" if there are single
// quotes and no double ones.
func pythonBytes(p []byte) string {
	quote := byte('\'')
	if bytes.IndexByte(p, '\'') >= 0 && bytes.IndexByte(p, '"') < 0 {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte('b')
	b.WriteByte(quote)
	for _, c := range p {
		switch {
		case c == quote || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// Statement returns what is signed for a model: its files in the order of
// their names, code point by code point.
func Statement(name string, files []File) ([]byte, error) {
	if len(files) == 0 {
		return nil, errors.New("the model has no files")
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	var p predicate
	p.Serialization.Method, p.Serialization.HashType = "files", "sha256"
	p.Serialization.IgnorePaths = defaultIgnored
	root := sha256.New()
	s := &Signed{Hashing: WholeFiles}
	for _, f := range files {
		if slices.Contains(defaultIgnored, strings.SplitN(f.Name, "/", 2)[0]) {
			continue
		}
		raw, err := hex.DecodeString(f.Digest)
		if err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("%s: %q is no sha256 digest", f.Name, f.Digest)
		}
		root.Write(raw)
		p.Resources = append(p.Resources, resource{f.Name, "sha256", f.Digest})
		s.Files = append(s.Files, f)
	}
	if err := s.checkNames(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return attest.Marshal(attest.Statement{
		Type:          attest.StatementTypeV1,
		Subject:       []attest.Resource{{Name: name, Digest: attest.Digests(digest.NewDigestFromBytes(digest.SHA256, root.Sum(nil)))}},
		PredicateType: Predicate, Predicate: raw,
	})
}
