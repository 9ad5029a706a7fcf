package oms

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/assay-dev/assay/verify"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// testdata is a folder of published vectors. Without any the tests skip; where
// there are some, a CI run must not miss these.
func testdata(t testing.TB, name string) string {
	t.Helper()
	root := os.Getenv("ASSAY_TESTDATA")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "data")
	}
	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); err != nil {
		if _, here := os.Stat(root); here == nil && os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("the published vectors are not here (%v): set ASSAY_TESTDATA", err)
	}
	return dir
}

func read(t testing.TB, parts ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func indent(raw []byte) string {
	return strings.ReplaceAll(strings.TrimSpace(string(raw)), "\n", "\n    ")
}

// referenceTrust trusts the reference tool's test keys: a key, a certificate
// of the authority above it, and whoever the public instance authenticated.
func referenceTrust(t testing.TB) *verify.Trust {
	t.Helper()
	keys := filepath.Join(testdata(t, "oms-history"), "scripts", "tests", "keys", "certificate")
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sigstore/sigstore-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	public := read(t, strings.TrimSpace(string(out)), "pkg", "testing", "data", "trusted-roots", "public-good.json")
	trust, err := verify.ParseTrust([]byte(fmt.Sprintf(`version: 1
identities:
- id: key
  roles: [release]
  repositories: ['**']
  publicKey: |
    %s
- id: certificate
  roles: [release]
  repositories: ['**']
  certificate: {authority: ca, subject: CN=intermediate-ca}
- id: person
  roles: [release]
  repositories: ['**']
  certificate: {authority: public, issuer: "https://sigstore.verify.ibm.com/oauth2", san: stefanb@us.ibm.com}
authorities:
- id: ca
  certificates: |
    %s
- id: public
  trustedRoot: |
    %s
`, indent(read(t, keys, "signing-key-pub.pem")), indent(read(t, keys, "ca-cert.pem")), indent(public))))
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

var here = verify.Context{Repository: "m", Now: now}

func folder(t testing.TB, dir string) (files []File) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(read(t, path))
		files = append(files, File{filepath.ToSlash(name), hex.EncodeToString(sum[:])})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The signatures that five releases of the reference tool made, over the
// models that they made them over.
func TestHistory(t *testing.T) {
	dir := filepath.Join(testdata(t, "oms-history"), "scripts", "tests")
	trust := referenceTrust(t)
	list, err := filepath.Glob(filepath.Join(dir, "v*"))
	if err != nil || len(list) != 13 {
		t.Fatalf("%d models, %v", len(list), err)
	}
	for _, model := range list {
		name := filepath.Base(model)
		raw := read(t, model, SignatureFile)
		files := folder(t, model)
		v, err := Verify(raw, files, trust, here, "ignore-me")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := map[string]string{"certificate": "certificate", "elliptic-key": "key", "sigstore": "person"}[name[strings.Index(name, "-")+1:]]
		if v.Identity != want {
			t.Errorf("%s: signed by %s, want %s", name, v.Identity, want)
		}
		if len(v.Files) == 0 || v.Root == "" {
			t.Errorf("%s: %+v", name, v.Signed)
		}
		code := func(what string, files []File, want string) {
			t.Helper()
			_, err := Verify(raw, files, trust, here, "ignore-me")
			var f *verify.Failure
			if !errors.As(err, &f) || f.Code != want {
				t.Errorf("%s, %s: %v, want %s", name, what, err, want)
			}
		}
		single := v.Files[0].Name == "."
		code("with one more file", append(slices.Clone(files), File{"extra", strings.Repeat("0", 64)}), CodeUnsigned)
		changed := slices.Clone(files)
		i := slices.IndexFunc(changed, func(f File) bool { return f.Name == "signme-1" })
		changed[i].Digest = strings.Repeat("0", 64)
		if single {
			changed = changed[i : i+1]
		}
		code("with another file", changed, CodeChanged)
		if !single {
			code("with one file less", slices.Delete(slices.Clone(files), i, i+1), CodeMissing)
		}
		// Whoever trusts nobody believes nothing.
		if _, err := Verify(raw, files, verify.NoTrust(), here, "ignore-me"); err == nil {
			t.Errorf("%s verifies without trust", name)
		}
	}
}

// The specification's vectors.
func TestSpecification(t *testing.T) {
	dir := filepath.Join(testdata(t, "oms-spec"), "test-vectors", "v1.0")
	trust := referenceTrust(t)
	for _, name := range []string{"key", "certificate", "sigstore"} {
		v, err := VerifySignature(read(t, dir, "valid", name+".bundle.json"), trust, here)
		if err != nil || v.Version != "1.0" || len(v.Files) != 2 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	for name, code := range map[string]string{
		"invalid/empty": verify.CodeBundleInvalid, "invalid/missing-envelope": verify.CodeBundleInvalid, "invalid/missing-verification-material": verify.CodeBundleInvalid,
		"invalid/missing-tlog-entries": verify.CodeRekor,
		// Its signature is that of another payload.
		"invalid-payload/wrong-predicate": verify.CodeUnknownKey,
	} {
		_, err := VerifySignature(read(t, dir, name+".bundle.json"), trust, here)
		var f *verify.Failure
		if !errors.As(err, &f) || f.Code != code {
			t.Errorf("%s: %v, want %s", name, err, code)
		}
	}
}

// The specification's vector of a wrong predicate, without its signature.
func TestWrongPredicate(t *testing.T) {
	var b struct {
		Envelope struct{ Payload []byte } `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(read(t, testdata(t, "oms-spec"), "test-vectors", "v1.0", "invalid-payload", "wrong-predicate.bundle.json"), &b); err != nil {
		t.Fatal(err)
	}
	_, err := Parse(b.Envelope.Payload)
	var f *verify.Failure
	if !errors.As(err, &f) || f.Code != verify.CodePredicate {
		t.Errorf("%v, want %s", err, verify.CodePredicate)
	}
}

func newKey(t testing.TB) *verify.Key {
	t.Helper()
	k, err := verify.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func trustOf(t testing.TB, k *verify.Key, roles string) *verify.Trust {
	t.Helper()
	trust, err := verify.ParseTrust([]byte("version: 1\nidentities:\n- id: team\n  roles: [" + roles + "]\n  repositories: ['**']\n  publicKey: |\n    " + indent(k.PublicPEM()) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func of(contents map[string]string) (files []File) {
	for name, c := range contents {
		sum := sha256.Sum256([]byte(c))
		files = append(files, File{name, hex.EncodeToString(sum[:])})
	}
	return files
}

// What we write: in the specification's schema, in the order of code points,
// and what we read back.
func TestStatementAndVerify(t *testing.T) {
	files := of(map[string]string{"a/x": "1", "a-b/x": "2", "ä": "3", "Z": "4", "with:colon": "5", "empty": "", ".gitignore": "not signed", "sub/.gitignore": "signed"})
	statement, err := Statement("m", files)
	if err != nil {
		t.Fatal(err)
	}
	k := newKey(t)
	raw, err := verify.SignStatement(t.Context(), k, statement)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Verify(raw, files, trustOf(t, k, "release"), here)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range v.Files {
		names = append(names, f.Name)
	}
	if want := []string{"Z", "a-b/x", "a/x", "empty", "sub/.gitignore", "with:colon", "ä"}; !slices.Equal(names, want) {
		t.Errorf("signed %q, want %q", names, want)
	}
	_, err = Verify(raw, files, trustOf(t, k, "provenance"), here)
	var f *verify.Failure
	if !errors.As(err, &f) || f.Code != verify.CodeRole {
		t.Errorf("without the role: %v", err)
	}
	if _, err := Statement("m", nil); err == nil {
		t.Error("a model without files was signed")
	}
	for _, name := range []string{"../x", "/x", "a/../x", "a//x", "", "..", `a\b`, "C:/x", "a\x00b"} {
		if _, err := Statement("m", []File{{name, files[0].Digest}, files[1]}); err == nil {
			t.Errorf("a file of the name %q was signed", name)
		}
	}
	schemas := filepath.Join(testdata(t, "oms-spec"), "schemas", "v1.0")
	c := jsonschema.NewCompiler()
	for schema, doc := range map[string][]byte{"statement": statement, "bundle": raw} {
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(read(t, schemas, schema+".schema.json")))
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"bundle", "envelope", "predicate", "statement"} {
			r, err := jsonschema.UnmarshalJSON(bytes.NewReader(read(t, schemas, other+".schema.json")))
			if err != nil {
				t.Fatal(err)
			}
			c.AddResource(other+".schema.json", r)
			if id, ok := r.(map[string]any)["$id"].(string); ok {
				c.AddResource(id, r)
			}
		}
		c.AddResource("root-"+schema, parsed)
		s, err := c.Compile("root-" + schema)
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(value); err != nil {
			t.Errorf("%s is not in the specification's schema: %v\n%s", schema, err, doc)
		}
	}
}

// Change any member of what is signed, and it does not parse, or it says the
// same.
func TestHostilePayloads(t *testing.T) {
	statement, err := Statement("m", of(map[string]string{"a": "1", "b": "2"}))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(s, p map[string]any)) []byte {
		var s map[string]any
		if err := json.Unmarshal(statement, &s); err != nil {
			t.Fatal(err)
		}
		change(s, s["predicate"].(map[string]any))
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	one := func(p map[string]any, i int) map[string]any {
		return p["resources"].([]any)[i].(map[string]any)
	}
	for name, tc := range map[string]struct {
		payload []byte
		code    string
	}{
		"another root":            {edit(func(s, p map[string]any) { one(p, 0)["digest"] = strings.Repeat("0", 64) }), CodeRoot},
		"another order":           {edit(func(s, p map[string]any) { slices.Reverse(p["resources"].([]any)) }), CodeRoot},
		"no resources":            {edit(func(s, p map[string]any) { p["resources"] = []any{} }), verify.CodeStatement},
		"a name outside":          {edit(func(s, p map[string]any) { one(p, 0)["name"] = "../a" }), verify.CodeStatement},
		"one name twice":          {edit(func(s, p map[string]any) { one(p, 0)["name"] = "b" }), verify.CodeStatement},
		"an unknown field":        {edit(func(s, p map[string]any) { p["unless"] = true }), verify.CodeStatement},
		"an unknown field inside": {edit(func(s, p map[string]any) { one(p, 0)["optional"] = true }), verify.CodeStatement},
		"shards":                  {edit(func(s, p map[string]any) { p["serialization"].(map[string]any)["method"] = "shards" }), verify.CodeStatement}, // without their size
		"shards of nothing": {edit(func(s, p map[string]any) {
			p["serialization"] = map[string]any{"method": "shards", "hash_type": "sha256", "allow_symlinks": false, "shard_size": 0}
		}), verify.CodeStatement},
		"shards of halves": {edit(func(s, p map[string]any) {
			p["serialization"] = map[string]any{"method": "shards", "hash_type": "sha256", "allow_symlinks": false, "shard_size": 8.5}
		}), verify.CodeStatement},
		"files with a shard size": {edit(func(s, p map[string]any) { p["serialization"].(map[string]any)["shard_size"] = 8 }), verify.CodeStatement},
		"another method":          {edit(func(s, p map[string]any) { p["serialization"].(map[string]any)["method"] = "trees" }), CodeUnsupported},
		"another hash":            {edit(func(s, p map[string]any) { p["serialization"].(map[string]any)["hash_type"] = "md5" }), CodeUnsupported},
		"blake":                   {edit(func(s, p map[string]any) { p["serialization"].(map[string]any)["hash_type"] = "blake2b" }), CodeUnsupported},
		"a mixed hash":            {edit(func(s, p map[string]any) { one(p, 0)["algorithm"] = "blake3" }), CodeUnsupported},
		"another predicate":       {edit(func(s, p map[string]any) { s["predicateType"] = "https://example.com/x" }), verify.CodePredicate},
		"two subjects": {edit(func(s, p map[string]any) {
			s["subject"] = append(s["subject"].([]any), s["subject"].([]any)[0])
		}), verify.CodeStatement},
		"duplicate keys": {[]byte(strings.Replace(string(statement), `"resources"`, `"resources":[],"resources"`, 1)), verify.CodeStatement},
	} {
		_, err := Parse(tc.payload)
		var f *verify.Failure
		if !errors.As(err, &f) || f.Code != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
}

// closed is storage that fails a test in which a blob is opened.
func closed(t testing.TB) Opener {
	return func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		t.Errorf("blob %s was opened", d.Digest)
		return nil, fs.ErrClosed
	}
}

func manifest(t testing.TB, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func layer(mediaType, name, content string, annotations ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(content), Size: int64(len(content)), Annotations: map[string]string{}}
	if name != "" {
		d.Annotations[ocispec.AnnotationTitle] = name
	}
	for i := 0; i < len(annotations); i += 2 {
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func TestBareFilesAreNotOpened(t *testing.T) {
	m := manifest(t,
		layer(ocispec.MediaTypeImageLayer, "model.onnx", "weights"),
		layer("application/vnd.cncf.model.weight.v1.raw", "", "more weights", modelPackFile, "w/2.bin"),
		layer("application/octet-stream", "tokenizer.json", "{}"))
	files, err := Files(t.Context(), m, closed(t))
	if err != nil {
		t.Fatal(err)
	}
	statement, err := Statement("m", files)
	if err != nil {
		t.Fatal(err)
	}
	k := newKey(t)
	raw, err := verify.SignStatement(t.Context(), k, statement)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := Verify(raw, files, trustOf(t, k, "release"), here); err != nil || len(v.Files) != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	want := of(map[string]string{"model.onnx": "weights", "w/2.bin": "more weights", "tokenizer.json": "{}"})
	for _, f := range want {
		if !slices.Contains(files, f) {
			t.Errorf("%s is not among %v", f.Name, files)
		}
	}
	for name, bad := range map[string][]byte{
		"no name":        manifest(t, layer("application/octet-stream", "", "x")),
		"nothing":        manifest(t),
		"another digest": manifest(t, ocispec.Descriptor{MediaType: "a/b", Digest: digest.SHA512.FromString("x"), Annotations: map[string]string{ocispec.AnnotationTitle: "x"}}),
		"no manifest":    []byte("x"),
	} {
		if files, err := Files(t.Context(), bad, closed(t)); err == nil {
			t.Errorf("%s: %v", name, files)
		}
	}
}

func archive(t testing.TB, compressed bool, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = nopCloser{&b}
	if compressed {
		w = gzip.NewWriter(&b)
	}
	tw := tar.NewWriter(w)
	for _, h := range headers {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		h.Mode = 0o644
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(tw, content)
		}
	}
	tw.Close()
	w.Close()
	return b.String()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// In tar layers it is the digests of the files inside that count.
func TestTars(t *testing.T) {
	for _, mediaType := range []string{"application/vnd.cncf.model.weight.v1.tar", "application/vnd.kitops.modelkit.model.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"} {
		content := archive(t, strings.HasSuffix(mediaType, "gzip"),
			tar.Header{Name: "./dir/", Typeflag: tar.TypeDir}, tar.Header{Name: "./dir/a", Typeflag: tar.TypeReg, Linkname: "1"}, tar.Header{Name: "b", Typeflag: tar.TypeReg, Linkname: "2"})
		open := func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content)), nil
		}
		files, err := Files(t.Context(), manifest(t, layer(mediaType, "dir", content)), open)
		if err != nil || len(files) != 2 {
			t.Errorf("%s: %v, %v", mediaType, files, err)
		}
		for _, f := range of(map[string]string{"dir/a": "1", "b": "2"}) {
			if !slices.Contains(files, f) {
				t.Errorf("%s: %s is not among %v", mediaType, f.Name, files)
			}
		}
	}
	unpack := archive(t, true, tar.Header{Name: "x", Typeflag: tar.TypeReg, Linkname: "1"})
	files, err := Files(t.Context(), manifest(t, layer(ocispec.MediaTypeImageLayerGzip, "dir", unpack, orasUnpack, "true")), func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(unpack)), nil
	})
	if err != nil || len(files) != 1 || files[0].Name != "x" {
		t.Errorf("a folder that ORAS packed: %v, %v", files, err)
	}
	for name, content := range map[string]string{
		"a link":    archive(t, false, tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"truncated": archive(t, false, tar.Header{Name: "x", Typeflag: tar.TypeReg, Linkname: "123"})[:513],
		"zstd":      "\x28\xb5\x2f\xfd and so on",
		"noise":     strings.Repeat("noise", 200),
	} {
		files, err := Files(t.Context(), manifest(t, layer("application/vnd.cncf.model.weight.v1.tar", "dir", content)), func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content)), nil
		})
		if err == nil {
			t.Errorf("%s: %v", name, files)
		}
	}
}

func TestPythonBytes(t *testing.T) {
	for in, want := range map[string]string{
		"a\n\t\r\\": `b'a\n\t\r\\'`, `it's`: `b"it's"`, `"it's"`: `b'"it\'s"'`, "ä\x00\x7f": `b'\xc3\xa4\x00\x7f'`, "": `b''`,
	} {
		if got := pythonBytes([]byte(in)); got != want {
			t.Errorf("%q is rendered %s, want %s", in, got, want)
		}
	}
}

// signedBy is the statement of the reference tool over the files of a model,
// hashed in some way.
func signedBy(t testing.TB, h Hashing, files []File, algorithm string) []byte {
	t.Helper()
	root := sha256.New()
	var resources []any
	for _, f := range files {
		raw, err := hex.DecodeString(f.Digest)
		if err != nil {
			t.Fatal(err)
		}
		root.Write(raw)
		resources = append(resources, map[string]any{"name": f.Name, "algorithm": algorithm, "digest": f.Digest})
	}
	serialization := map[string]any{"method": "files", "hash_type": h.Hash, "allow_symlinks": false}
	if h.Shard > 0 {
		// Numbers become floating-point ones on the reference tool's way.
		serialization["method"], serialization["shard_size"] = "shards", json.Number(fmt.Sprintf("%d.0", h.Shard))
	}
	raw, err := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": Predicate,
		"subject":   []any{map[string]any{"name": "m", "digest": map[string]any{"sha256": hex.EncodeToString(root.Sum(nil))}}},
		"predicate": map[string]any{"serialization": serialization, "resources": resources},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// The hashes of the specification give what their own say of "abc", and the
// pieces of a file are cut as the reference tool cuts them.
func TestHashings(t *testing.T) {
	for h, want := range map[Hashing][]File{
		{"sha256", 0}:  {{"f", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
		{"blake2b", 0}: {{"f", "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"}},
		{"blake3", 0}:  {{"f", "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"}},
		{"sha256", 2}: {
			{"f:0:2", "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"}, // ab
			{"f:2:3", "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"}, // c
		},
		{"sha256", 3}: {{"f:0:3", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
		{"sha256", 9}: {{"f:0:3", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
	} {
		if got, err := h.sum("f", strings.NewReader("abc"), 9); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", h, got, err, want)
		}
	}
	if got, err := (Hashing{"sha256", 2}).sum("empty", strings.NewReader(""), 9); err != nil || len(got) != 0 {
		t.Errorf("pieces of nothing: %v, %v", got, err)
	}
	if _, err := (Hashing{"sha256", 1}).sum("f", strings.NewReader("abc"), 2); codeOf(err) != verify.CodeTooLarge {
		t.Errorf("more pieces than there may be: %v", err)
	}
	h := Hashing{"blake3", 8}
	for name, want := range map[string]string{
		"a:0:8": "a", "a/b:c:8:16": "a/b:c", "a:1:2:8:9": "a:1:2", "a": "", "a:0": "", "a:0:0": "", "a:8:0": "", "a:1:8": "", "a:0:9": "", "a:00:8": "", "a:-8:0": "", ":0:8": "",
		"a:0:99999999999999999999": "",
	} {
		if got, ok := h.path(name); ok != (want != "") || ok && got != want {
			t.Errorf("%q is of %q, %v", name, got, ok)
		}
	}
}

// Signatures of pieces, and by other hashes, verify where the files can be
// read: bare, and in an archive. Where they cannot, they are refused with a
// code, and no blob is opened.
func TestSignaturesThatNeedTheFiles(t *testing.T) {
	k := newKey(t)
	trust := trustOf(t, k, "release")
	contents := map[string]string{"weights.bin": strings.Repeat("0123456789", 3), "empty": "", "config:1:2": "{}"}
	blobs := map[digest.Digest]string{}
	var layers []ocispec.Descriptor
	layer := func(mediaType, data string, annotations map[string]string) {
		d := digest.FromString(data)
		blobs[d] = data
		layers = append(layers, ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data)), Annotations: annotations})
	}
	for name, data := range contents {
		layer("application/x-weights", data, map[string]string{ocispec.AnnotationTitle: name})
	}
	layer("application/vnd.oci.image.layer.v1.tar", archive(t, false, tar.Header{Name: "more/tokenizer", Typeflag: tar.TypeReg, Linkname: "tokens"}), nil)
	contents["more/tokenizer"] = "tokens"
	open := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(blobs[d.Digest])), nil
	}
	body := manifest(t, layers...)
	for _, h := range []Hashing{{"sha256", 0}, {"blake2b", 0}, {"blake3", 0}, {"sha256", 8}, {"blake2b", 7}, {"blake3", 1000}} {
		var files []File
		for _, name := range slices.Sorted(maps.Keys(contents)) {
			list, err := h.sum(name, strings.NewReader(contents[name]), 1000)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, list...)
		}
		algorithms := []string{h.Hash}
		if h.Shard > 0 {
			algorithms = append(algorithms, fmt.Sprintf("%s-sharded-%d", h.Hash, h.Shard))
		}
		for _, algorithm := range algorithms {
			raw, err := verify.SignStatement(t.Context(), k, signedBy(t, h, files, algorithm))
			if err != nil {
				t.Fatal(err)
			}
			v, err := VerifySignature(raw, trust, here)
			if err != nil || v.Hashing != h {
				t.Fatalf("%s: %+v, %v", h, v, err)
			}
			there, err := FilesBy(t.Context(), body, v.Hashing, open)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Check(there); err != nil {
				t.Errorf("%s: %v", h, err)
			}
			if h != WholeFiles {
				if _, err := Verify(raw, files, trust, here); codeOf(err) != CodeUnsupported {
					t.Errorf("%s, of a registry's digests: %v", h, err)
				}
			}
			// One byte is another, one file more, one less.
			for name, edit := range map[string]func(m map[string]string){
				CodeChanged: func(m map[string]string) { m["weights.bin"] = "1" + m["weights.bin"][1:] }, CodeUnsigned: func(m map[string]string) { m["added"] = "x" },
				CodeMissing: func(m map[string]string) { delete(m, "config:1:2") },
			} {
				other := maps.Clone(contents)
				edit(other)
				var list []File
				for name, data := range other {
					l, err := h.sum(name, strings.NewReader(data), 1000)
					if err != nil {
						t.Fatal(err)
					}
					list = append(list, l...)
				}
				if err := v.Check(list); codeOf(err) != name {
					t.Errorf("%s: %v, want %s", h, err, name)
				}
			}
			// The end of a file is cut off, or something is put behind it.
			for data, want := range map[string]string{contents["weights.bin"][:29]: "", contents["weights.bin"] + "x": ""} {
				other := maps.Clone(contents)
				other["weights.bin"] = data
				var list []File
				for name, data := range other {
					l, _ := h.sum(name, strings.NewReader(data), 1000)
					list = append(list, l...)
				}
				if err := v.Check(list); err == nil {
					t.Errorf("%s: %d bytes of 30 are enough (%s)", h, len(data), want)
				}
			}
		}
	}
	// A model of one file, whatever it is called.
	h := Hashing{"blake3", 8}
	list, err := h.sum(".", strings.NewReader("0123456789"), 9)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(signedBy(t, h, list, "blake3"))
	if err != nil {
		t.Fatal(err)
	}
	there, _ := h.sum("model:8:16", strings.NewReader("0123456789"), 9)
	if err := s.Check(there); err != nil {
		t.Error(err)
	}
	two, _ := h.sum("other", strings.NewReader("0123456789"), 9)
	if err := s.Check(append(there, two...)); codeOf(err) != CodeUnsigned {
		t.Errorf("two files: %v", err)
	}
	for i, name := range []string{"../a:0:8", "a:0:9", "a"} {
		bad := slices.Clone(list)
		bad[0].Name = name
		if _, err := Parse(signedBy(t, h, bad, "blake3")); codeOf(err) != verify.CodeStatement {
			t.Errorf("%d: %v", i, err)
		}
	}
	// Ten times as many pieces of a nameless file take about ten times as long, and
	// not a hundred times.
	best := func(n int) time.Duration {
		many := make([]File, n)
		for i := range many {
			many[i] = File{fmt.Sprintf(".:%d:%d", 8*i, 8*i+8), list[0].Digest}
		}
		raw, took := signedBy(t, h, many, "blake3"), time.Hour
		for range 3 {
			began := time.Now()
			if _, err := Parse(raw); err != nil {
				t.Fatal(err)
			}
			took = min(took, time.Since(began))
		}
		return took
	}
	if few, many := best(500), best(5_000); many > 40*few {
		t.Errorf("500 pieces are read in %v, and 5,000 in %v", few, many)
	}
}

// Take any field out of a published signature, or make it another: it does not
// verify, or names the same files by the same signer.
func TestEveryFieldOfASignatureCounts(t *testing.T) {
	trust := referenceTrust(t)
	dir := testdata(t, "oms-history")
	vectors, err := filepath.Glob(filepath.Join(dir, "scripts", "tests", "*", "model.sig"))
	if err != nil {
		t.Fatal(err)
	}
	verified := 0
	for _, path := range vectors {
		raw := read(t, path)
		want, err := VerifySignature(raw, trust, here)
		if err != nil {
			continue // of somebody whom the trust does not name
		}
		verified++
		n, refused := 0, 0
		var doc any
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		try := func(where string) {
			n++
			mutant, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			got, err := VerifySignature(mutant, trust, here)
			var f *verify.Failure
			switch {
			case err == nil && (!slices.Equal(got.Files, want.Files) || got.Root != want.Root || got.Identity != want.Identity):
				t.Errorf("%s, %s: it names %v by %s", path, where, got.Files, got.Identity)
			case err != nil && !errors.As(err, &f):
				t.Errorf("%s, %s: %v has no code", path, where, err)
			case err != nil:
				refused++
			}
		}
		var walk func(where string, v any, set func(any))
		walk = func(where string, v any, set func(any)) {
			others := []any{nil, "AAAA", 7, map[string]any{}, []any{}}
			if s, ok := v.(string); ok && len(s) > 8 {
				others = append(others, s[:len(s)/2]+map[bool]string{true: "A", false: "B"}[s[len(s)/2] != 'A']+s[len(s)/2+1:])
			}
			for _, o := range others {
				set(o)
				try(where)
			}
			set(v)
			switch v := v.(type) {
			case map[string]any:
				for name, member := range v {
					delete(v, name)
					try(where + "." + name + " removed")
					v[name] = member
					walk(where+"."+name, member, func(x any) { v[name] = x })
				}
			case []any:
				for i, item := range v {
					walk(fmt.Sprintf("%s[%d]", where, i), item, func(x any) { v[i] = x })
				}
			}
		}
		walk("$", doc, func(x any) { doc = x })
		if n < 50 || refused < n/2 {
			t.Errorf("%s: of %d mutants %d were refused", path, n, refused)
		}
	}
	if verified < 3 {
		t.Errorf("%d of %d vectors verify", verified, len(vectors))
	}
}

func codeOf(err error) string {
	var f *verify.Failure
	if errors.As(err, &f) {
		return f.Code
	}
	return fmt.Sprint(err)
}

func FuzzParse(f *testing.F) {
	statement, err := Statement("m", of(map[string]string{"a": "1"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(statement)
	pieces, err := Hashing{"blake3", 2}.sum("a", strings.NewReader("abc"), 9)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signedBy(f, Hashing{"blake3", 2}, pieces, "blake3"))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"` + strings.Repeat("0", 64) + `"},"annotations":{"actual_hash_algorithm":"file-sha256"}}],"predicateType":"` + PredicateV02 + `","predicate":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw)
		var failure *verify.Failure
		if err != nil {
			if !errors.As(err, &failure) {
				t.Errorf("%v has no code", err)
			}
			return
		}
		for _, x := range s.Files {
			x.Name, _ = s.Hashing.path(x.Name)
			if strings.Contains(x.Name, "..") && slices.Contains(strings.Split(x.Name, "/"), "..") || strings.HasPrefix(x.Name, "/") {
				t.Errorf("it names %q", x.Name)
			}
		}
		if err := s.Check(s.Files); err != nil && !s.alone() {
			t.Errorf("it does not fit itself: %v", err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	// The same key in every process of a fuzzing run: what one signs is a signature
	// to the others.
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	k, err := verify.NewKey(private)
	if err != nil {
		f.Fatal(err)
	}
	trust := trustOf(f, k, "release")
	files := of(map[string]string{"a": "1"})
	statement, err := Statement("m", files)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := verify.SignStatement(f.Context(), k, statement)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"rawBytes":"AAAA"}},"dsseEnvelope":{"payload":"` + base64.StdEncoding.EncodeToString(statement) + `"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if v, err := Verify(raw, files, trust, here); err == nil && !bytes.Equal(v.Payload, statement) {
			t.Errorf("a forged signature verifies: %s", v.Payload)
		}
	})
}
