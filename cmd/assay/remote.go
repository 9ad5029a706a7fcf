package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// maxDocument bounds the manifests and documents the commands read whole, and
// maxLines those that have a line for each case or tensor of a suite: a hundred
// thousand cases are some 60 MiB.
const (
	maxDocument = 32 << 20
	maxLines    = 1 << 30
)

// repository returns the repository that ref names and the tag or digest in
// it ("" if it has none). A reference whose first part is no host is looked
// up on --server.
func (g *globals) repository(ref string) (*remote.Repository, string, error) {
	full := ref
	host, _, _ := strings.Cut(ref, "/")
	if !strings.Contains(ref, "/") || !strings.ContainsAny(host, ".:") && host != "localhost" {
		u, err := g.serverURL()
		if err != nil {
			return nil, "", err
		}
		full = u.Host + "/" + ref
	}
	parsed, err := registry.ParseReference(full)
	if err != nil {
		return nil, "", remedy(usagef("%q is no model reference: %v", ref, err), "write REPOSITORY:TAG or REPOSITORY@DIGEST, for example credit/scorer:1.4.0")
	}
	repo := &remote.Repository{
		Reference:       parsed,
		PlainHTTP:       g.plain(parsed.Host()),
		SkipReferrersGC: true,
	}
	client := &auth.Client{Client: httpClient, Cache: auth.NewCache(), Credential: g.credential}
	client.SetUserAgent("assay/" + buildVersion())
	repo.Client = client
	return repo, parsed.Reference, nil
}

// httpClient keeps as many connections to a registry as are used at once: the
// default client would make most of them anew for each piece of a file.
var httpClient = func() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 2 * pullConnections
	return &http.Client{Transport: retry.NewTransport(t)}
}()

// plain reports whether a host is spoken to without TLS: as --server says if
// it is that, else on this machine, or if --plain-http says so.
func (g *globals) plain(host string) bool {
	if u, err := g.serverURL(); err == nil && u.Host == host {
		return u.Scheme == "http"
	}
	return g.plainHTTP || isLoopback(host)
}

// resolve returns the repository that ref names and the descriptor of the
// manifest in it.
func (g *globals) resolve(ctx context.Context, ref string) (*remote.Repository, ocispec.Descriptor, error) {
	repo, reference, err := g.repository(ref)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	if reference == "" {
		return nil, ocispec.Descriptor{}, remedy(usagef("%q names a repository, not a version", ref), "add :TAG or @DIGEST; 'assay versions %s' lists them", ref)
	}
	desc, err := repo.Resolve(ctx, reference)
	if err != nil {
		return nil, ocispec.Descriptor{}, g.explain(err, "resolving "+ref)
	}
	return repo, desc, nil
}

// fetch reads the manifest or blob that desc names, and checks its digest.
func (g *globals) fetch(ctx context.Context, repo *remote.Repository, desc ocispec.Descriptor) ([]byte, error) {
	most := int64(maxDocument)
	switch desc.MediaType {
	case attest.CasesType, attest.TensorsType, attest.TextsType, attest.ObservationsType:
		most = maxLines
	}
	if desc.Size > most {
		return nil, fmt.Errorf("%s has %d bytes, more than a document of type %s may have (%d)", desc.Digest, desc.Size, desc.MediaType, most)
	}
	data, err := content.FetchAll(ctx, repo, desc)
	if err != nil {
		return nil, g.explain(err, "fetching "+desc.Digest.String())
	}
	return data, nil
}

// A blob is content together with its descriptor, held in memory.
type blob struct {
	ocispec.Descriptor
	Data []byte
}

// pushArtifact pushes the blobs and then the manifest that names them, by
// digest and under the tags. What the registry has already is not sent again.
func (g *globals) pushArtifact(ctx context.Context, repo *remote.Repository, manifest ocispec.Descriptor, body []byte, blobs []blob, tags ...string) error {
	for _, b := range blobs {
		ok, err := repo.Blobs().Exists(ctx, b.Descriptor)
		if err != nil {
			return g.explain(err, "looking for blob "+b.Digest.String())
		}
		if ok {
			continue
		}
		if err := repo.Blobs().Push(ctx, b.Descriptor, bytes.NewReader(b.Data)); err != nil && !errors.Is(err, errdef.ErrAlreadyExists) {
			return g.explain(err, "pushing blob "+b.Digest.String())
		}
	}
	if len(tags) == 0 {
		tags = []string{manifest.Digest.String()}
	}
	for _, tag := range tags {
		if err := repo.Manifests().PushReference(ctx, manifest, bytes.NewReader(body), tag); err != nil {
			return g.explain(err, "pushing manifest "+tag)
		}
	}
	return nil
}

// attachBundle signs a statement about a manifest and attaches it to that.
func (g *globals) attachBundle(ctx context.Context, repo *remote.Repository, subject ocispec.Descriptor, signer *verify.Signer, statement []byte, predicateType string) (*verify.Referrer, error) {
	bundle, err := signer.Sign(ctx, statement)
	if err != nil {
		return nil, err
	}
	ref, err := verify.AttachBundle(subject, bundle, predicateType, time.Now())
	if err != nil {
		return nil, err
	}
	return ref, g.pushReferrer(ctx, repo, ref)
}

func (g *globals) pushReferrer(ctx context.Context, repo *remote.Repository, ref *verify.Referrer) error {
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	return g.pushArtifact(ctx, repo, ref.Descriptor, ref.Manifest, []blob{{config, ref.Config}, {ref.Layer, ref.Signed}})
}

// fetcher returns a function that reads documents from a repository.
func (g *globals) fetcher(repo *remote.Repository) conformance.Fetch {
	return func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) { return g.fetch(ctx, repo, desc) }
}

// pushDocument pushes a document as an artifact.
func (g *globals) pushDocument(ctx context.Context, repo *remote.Repository, a *conformance.Artifact, tags ...string) error {
	var blobs []blob
	for _, b := range a.Blobs {
		blobs = append(blobs, blob{b.Descriptor, b.Data})
	}
	return g.pushArtifact(ctx, repo, a.Descriptor, a.Manifest, blobs, tags...)
}

// descriptorOf describes data held in memory.
func descriptorOf(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func (g *globals) serverURL() (*url.URL, error) {
	u, err := url.Parse(g.server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("--server %q is no address: write http://HOST:PORT or https://HOST:PORT", g.server)
	}
	return u, nil
}

// api calls the server's REST interface. in (unless nil) is sent as JSON and
// the answer decoded into out.
func (g *globals) api(ctx context.Context, method, path string, query url.Values, in, out proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return g.call(ctx, method, path, query, in, out)
}

// apiLong is api for what may take long.
func (g *globals) apiLong(ctx context.Context, method, path string, in, out proto.Message) error {
	return g.call(ctx, method, path, nil, in, out)
}

func (g *globals) call(ctx context.Context, method, path string, query url.Values, in, out proto.Message) error {
	u, err := g.serverURL()
	if err != nil {
		return err
	}
	u.Path, u.RawQuery = "/api/v1/"+path, query.Encode()
	var body io.Reader
	if in != nil {
		raw, err := protojson.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "assay/"+buildVersion())
	if err := g.authorize(req); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return g.explain(err, method+" "+u.Path)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err != nil {
		return g.explain(err, method+" "+u.Path)
	}
	if err := g.refusal(resp, raw); err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what was expected: %w", method, u.Path, err)
	}
	return nil
}

// refusal is the error in an answer of the REST interface, or nil.
func (g *globals) refusal(resp *http.Response, raw []byte) error {
	if resp.StatusCode/100 != 2 {
		// google.rpc.Status as grpc-gateway renders it.
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(raw, &status) == nil && status.Message != "" {
			err := &apiError{resp.StatusCode, status.Message}
			if resp.StatusCode == http.StatusUnauthorized {
				return remedy(err, "log in with 'assay login', or put a token into %s", tokenVariable)
			}
			return err
		}
		return remedy(&apiError{resp.StatusCode, fmt.Sprintf("%s %s: the server answered %s", resp.Request.Method, resp.Request.URL.Path, resp.Status)},
			"is %s an Assay server? name it with --server", g.server)
	}
	return nil
}

// printProto is print for an answer of the server.
func (g *globals) printProto(m proto.Message, text func(w io.Writer)) error {
	if g.json() {
		raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
		if err != nil {
			return err
		}
		// protojson varies its spacing on purpose; what we print should not.
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
		_, err = fmt.Fprintln(g.out, b.String())
		return err
	}
	text(g.out)
	return nil
}

// An apiError is an error answer of the server's REST interface.
type apiError struct {
	Status  int
	Message string
}

func (e *apiError) Error() string { return e.Message }

// explain says what was being done when err came up, and what to do about
// the errors people meet most.
func (g *globals) explain(err error, doing string) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("%s: %w", doing, err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return remedy(wrapped, "no server answers there: start one with 'assay serve', or name another with --server or ASSAY_SERVER")
	case unauthorized(err):
		return remedy(wrapped, "log in with 'assay login' (or docker or oras login), or put a token into %s", tokenVariable)
	case errors.Is(err, errdef.ErrNotFound):
		return remedy(fmt.Errorf("%s: not found", doing), "list what there is with 'assay versions REPOSITORY'")
	}
	return wrapped
}

func unauthorized(err error) bool {
	var answer *errcode.ErrorResponse
	return errors.Is(err, auth.ErrBasicCredentialNotFound) || errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
