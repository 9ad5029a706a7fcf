package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify/attest"
)

// currentTag names, in the repository of an environment, the document that
// describes it now.
const currentTag = "current"

// An Environment is an environment document with where it is kept.
type Environment struct {
	Document attest.Environment
	Digest   digest.Digest // of the document's manifest: the environment's identity
}

// Environments lists the names of the environments the actor may read.
func (r *Registry) Environments(ctx context.Context, actor access.Actor) (list []string, err error) {
	repos, _, err := r.Repositories(ctx, actor, "", -1)
	for _, repo := range repos {
		if name, ok := attest.EnvironmentName(repo); ok {
			list = append(list, name)
		}
	}
	return list, err
}

// Environment returns what an environment was at a moment.
func (r *Registry) Environment(ctx context.Context, actor access.Actor, name string, asOf AsOf) (Environment, error) {
	repo := attest.EnvironmentRepository(name)
	d, err := r.Resolve(ctx, actor, repo, currentTag, asOf)
	if errors.Is(err, ErrManifestUnknown) {
		return Environment{}, fmt.Errorf("%w: environment %q is not registered", ErrUnknown, name)
	}
	if err != nil {
		return Environment{}, err
	}
	return r.environmentDocument(ctx, actor, repo, d)
}

// environmentDocument reads a document of an environment.
func (r *Registry) environmentDocument(ctx context.Context, actor access.Actor, repo string, d digest.Digest) (Environment, error) {
	m, err := r.Manifest(ctx, actor, repo, string(d))
	if err != nil {
		return Environment{}, err
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(m.Body, &parsed); err != nil || len(parsed.Layers) != 1 {
		return Environment{}, fmt.Errorf("%w: environment document %s has not one layer", ErrDocumentInvalid, d)
	}
	raw, err := r.readBlob(ctx, repo, parsed.Layers[0].Digest, attest.MaxDocument)
	if err != nil {
		return Environment{}, err
	}
	e := Environment{Digest: d}
	if err := attest.Unmarshal(raw, &e.Document); err != nil {
		return Environment{}, fmt.Errorf("%w: environment document %s: %w", ErrDocumentInvalid, d, err)
	}
	if err := e.Document.Validate(); err != nil {
		return Environment{}, fmt.Errorf("%w: environment document %s: %w", ErrDocumentInvalid, d, err)
	}
	return e, nil
}

// A Deployment is a verified statement that a model runs somewhere.
type Deployment struct {
	Environment         string
	EnvironmentDocument digest.Digest
	Repository          string
	Model               digest.Digest
	Version             int // 0 if the model is no version
	Tags                []string
	From                time.Time
	Basis               string
	StatedBy            string
	Identity            string // of the signer in the trust file
	Statement           digest.Digest
	LogIndex            int64
	AdmittedAt          time.Time
}

// Deployments lists what ran in an environment at a time (zero is now), the
// newest first: the first is what ran, the others are what ran before it.
// known says from which moment's knowledge to answer: what was stated later
// is left out.
func (r *Registry) Deployments(ctx context.Context, actor access.Actor, environment string, at time.Time, known AsOf) (list []Deployment, err error) {
	if err := r.mayPull(actor, attest.EnvironmentRepository(environment)); err != nil {
		return nil, err
	}
	if at.IsZero() {
		at = r.clock()
	}
	err = r.view(ctx, func(rd store.Reader) error {
		list = nil
		rg := under("deployed", environment)
		rg.To = append(key("deployed", environment, number(at.UnixNano())), 0xff)
		rg.Reverse = true
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			var d deployedRow
			if err := decode(row, &d); err != nil {
				return err
			}
			if !known.includes(d.Index, d.At) || actor.Authorize(access.Pull, d.Repository) != nil {
				continue
			}
			statement, from := splitDeployed(row.Key, environment)
			one := Deployment{
				Environment: environment, EnvironmentDocument: d.Environment, Repository: d.Repository, Model: d.Model,
				From: from, Basis: d.Basis, StatedBy: d.StatedBy, Identity: d.Identity,
				Statement: statement, LogIndex: d.Index, AdmittedAt: d.At,
			}
			if n, err := rd.Get(key("versionof", d.Repository, string(d.Model))); err == nil {
				one.Version = versionNumber(n)
			}
			list = append(list, one)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	byRepository := map[string][]Version{}
	for i := range list {
		versions, ok := byRepository[list[i].Repository]
		if !ok {
			if versions, err = r.Versions(ctx, actor, list[i].Repository); err != nil {
				return nil, err
			}
			byRepository[list[i].Repository] = versions
		}
		if n := slices.IndexFunc(versions, func(v Version) bool { return v.Digest == list[i].Model }); n >= 0 {
			list[i].Tags = versions[n].Tags
		}
	}
	return list, nil
}

// splitDeployed takes apart a key whose middle is a binary number.
func splitDeployed(k []byte, environment string) (statement digest.Digest, from time.Time) {
	rest := k[len(key("deployed", environment))+1:]
	return digest.Digest(rest[9:]), time.Unix(0, lastNumber(rest[:8])).UTC()
}
