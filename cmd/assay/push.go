package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify/attest"
)

// pushConcurrency is how many files are sent at once: enough to use several
// cores for hashing on both sides, few enough not to split the bandwidth thin.
const pushConcurrency = 4

func newPushCommand(g *globals) *cobra.Command {
	var opt pushOptions
	c := &cobra.Command{
		Use:   "push REPOSITORY:TAG FILE...",
		Short: "Push a model version",
		Long: `Push files as a model version.

Without --format the manifest is the one 'oras push' writes: one layer for each
file, an empty config. With --format modelpack it is a CNCF ModelPack, whose
config says what the model is. oras, crane, docker, skopeo, kit and modctl can
push to and pull from the same registry.

What the registry has already is not sent again, and a file whose sending broke
off, even because this command was killed, goes on where the registry has it.

A large file is sent while it is hashed, and no further once its digest says
that the registry has it. Files that begin like one of the tag or of the newest
versions are hashed first.

A full SemVer tag (1.4.0, v2.0.0-rc.1) is written once and cannot be moved
afterwards; pushing to it again what is there changes nothing. The time in the
manifest is that of the first push, or SOURCE_DATE_EPOCH.`,
		Example: `  assay push credit/scorer:1.4.0 model.onnx preprocess.json
  assay push --format modelpack --name scorer digits/classifier:1.1.0 model.onnx README.md`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return push(cmd.Context(), g, args[0], args[1:], opt)
		},
	}
	f := c.Flags()
	f.StringVar(&opt.format, "format", "oras", "the form of the manifest: oras or modelpack")
	f.StringVar(&opt.name, "name", "", "modelpack: the model's name (default: the last part of the repository)")
	f.StringVar(&opt.family, "family", "", "modelpack: the model's family")
	f.StringVar(&opt.artifactType, "artifact-type", "", "oras: the manifest's artifactType")
	f.StringToStringVar(&opt.annotations, "annotation", nil, "manifest annotations, KEY=VALUE")
	f.StringSliceVar(&opt.tags, "tag", nil, "further tags for the same manifest")
	return c
}

type pushOptions struct {
	format, name, family, artifactType string
	annotations                        map[string]string
	tags                               []string
}

// A pushResult is what `assay push` prints.
type pushResult struct {
	Reference  string             `json:"reference"`
	Tags       []string           `json:"tags"`
	Descriptor ocispec.Descriptor `json:"descriptor"`
	Sent       int64              `json:"sentBytes"`
	Present    int64              `json:"presentBytes"`
}

func push(ctx context.Context, g *globals, ref string, files []string, opt pushOptions) error {
	repo, tag, err := g.repository(ref)
	if err != nil {
		return err
	}
	if tag == "" || strings.Contains(tag, ":") {
		return remedy(usagef("%q has no tag to push to", ref), "write %s:1.0.0", strings.SplitN(ref, "@", 2)[0])
	}
	layers, total, err := layerFiles(files)
	if err != nil {
		return err
	}
	if _, _, _, err := pack(repo, layers, opt, ""); err != nil {
		return err // before anything is sent
	}
	old, there, isThere := tagged(ctx, repo, tag)
	if err := g.hashFirst(ctx, repo, old, there, layers); err != nil {
		return interrupted(ctx, err)
	}
	bar := g.progress("pushing", total, true)
	sent, present, err := pushFiles(ctx, g, repo, layers, bar)
	bar.Stop()
	if err != nil {
		return interrupted(ctx, err)
	}

	manifest, config, body, err := pack(repo, layers, opt, pushTime())
	if err != nil {
		return err
	}
	if isThere {
		// What is there but for its time is that, so pushing it again changes nothing.
		m, c, b, err := pack(repo, layers, opt, there.Annotations[ocispec.AnnotationCreated])
		if err == nil && digest.FromBytes(b) == old.Digest {
			manifest, config, body = m, c, b
		}
	}
	desc := descriptorOf(manifest.MediaType, body)
	desc.ArtifactType = manifest.ArtifactType
	tags := append([]string{tag}, opt.tags...)
	configBlob := blob{manifest.Config, config}
	if err := g.pushArtifact(ctx, repo, desc, body, []blob{configBlob}, tags...); err != nil {
		return err
	}
	result := pushResult{
		Reference: repo.Reference.Repository + "@" + desc.Digest.String(), Tags: tags,
		Descriptor: desc, Sent: sent, Present: present,
	}
	return g.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "pushed %s:%s\n", repo.Reference.Repository, strings.Join(tags, ", "))
		fmt.Fprintf(w, "digest %s (%d files, %s sent, %s already there)\n", desc.Digest, len(layers), byteSize(sent), byteSize(result.Present))
	})
}

// pushTime is now, or the SOURCE_DATE_EPOCH of a reproducible build
// (https://reproducible-builds.org/specs/source-date-epoch/).
func pushTime() string {
	now := time.Now()
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		now = time.Unix(epoch, 0)
	}
	return now.UTC().Format(time.RFC3339)
}

// tagged returns the manifest of a tag, if there is one that can be read. If
// not, those who need to know why will.
func tagged(ctx context.Context, repo *remote.Repository, tag string) (desc ocispec.Descriptor, m ocispec.Manifest, ok bool) {
	const limit = 4 << 20 // of a manifest
	desc, err := repo.Resolve(ctx, tag)
	if err != nil || desc.Size > limit {
		return desc, m, false
	}
	body, err := content.FetchAll(ctx, repo, desc)
	return desc, m, err == nil && json.Unmarshal(body, &m) == nil
}

// pack makes the manifest of a version, its config, and its bytes.
func pack(repo *remote.Repository, layers []layerFile, opt pushOptions, created string) (manifest ocispec.Manifest, config, body []byte, err error) {
	manifest = ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Annotations: map[string]string{ocispec.AnnotationCreated: created},
	}
	maps.Copy(manifest.Annotations, opt.annotations)
	switch opt.format {
	case "oras":
		// The form of oras-go's PackManifest v1.1 as the oras tool calls it:
		// an unknown artifact type, an empty config, bare files as layers.
		manifest.ArtifactType = "application/vnd.unknown.artifact.v1"
		if opt.artifactType != "" {
			manifest.ArtifactType = opt.artifactType
		}
		config = ocispec.DescriptorEmptyJSON.Data
		manifest.Config = ocispec.DescriptorEmptyJSON
		for _, l := range layers {
			l.desc.MediaType = ocispec.MediaTypeImageLayer
			l.desc.Annotations = map[string]string{ocispec.AnnotationTitle: l.name}
			manifest.Layers = append(manifest.Layers, l.desc)
		}
	case "modelpack":
		if config, err = modelPack(&manifest, repo.Reference.Repository, layers, opt); err != nil {
			return manifest, nil, nil, err
		}
	default:
		return manifest, nil, nil, usagef("--format %q is unknown: use oras or modelpack", opt.format)
	}
	body, err = json.Marshal(manifest)
	return manifest, config, body, err
}

// A layerFile is a file that becomes a layer.
type layerFile struct {
	path     string // where it is
	name     string // what it is called in the manifest
	modified time.Time
	desc     ocispec.Descriptor // without a digest until it is hashed
}

// layerFiles describes the files, without their digests.
func layerFiles(files []string) ([]layerFile, int64, error) {
	layers := make([]layerFile, len(files))
	seen := map[string]string{}
	var total int64
	for i, file := range files {
		info, err := os.Stat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, 0, remedy(usagef("%s does not exist", file), "name the files that make up the model")
		case err != nil:
			return nil, 0, err
		case !info.Mode().IsRegular():
			return nil, 0, remedy(usagef("%s is not a regular file", file), "push its files by name, or a tar of it")
		}
		name := filepath.ToSlash(file)
		if filepath.IsAbs(file) || strings.HasPrefix(path.Clean(name), "../") {
			name = filepath.Base(file) // a place on this machine is nobody else's business
		}
		name = path.Clean(name)
		if other, dup := seen[name]; dup {
			return nil, 0, remedy(usagef("%s and %s would both be called %s", other, file, name), "run the command in the folder that holds them")
		}
		seen[name] = file
		layers[i] = layerFile{path: file, name: name, modified: info.ModTime(), desc: ocispec.Descriptor{Size: info.Size()}}
		total += info.Size()
	}
	return layers, total, nil
}

// hash reads the file and sets its digest. bar may be nil.
func (l *layerFile) hash(ctx context.Context, bar *progress) error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := digest.Canonical.Digester()
	// A buffer that stays in the processor's cache between the reading and the
	// hashing; larger ones are slower.
	buf := make([]byte, 128<<10)
	var n int64
	for {
		m, err := f.Read(buf)
		h.Hash().Write(buf[:m])
		n += int64(m)
		if bar != nil {
			bar.Add(int64(m))
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", l.path, err)
		}
	}
	if n != l.desc.Size {
		return remedy(fmt.Errorf("%s had %d bytes, and has %d", l.path, l.desc.Size, n), "push it again when nothing writes to it")
	}
	l.desc.Digest = h.Digest()
	return nil
}

// hashFirst hashes the files that are not sent unseen: small ones, which is
// soon done, and those that the registry probably has.
func (g *globals) hashFirst(ctx context.Context, repo *remote.Repository, old ocispec.Descriptor, there ocispec.Manifest, layers []layerFile) error {
	likely, err := g.likely(ctx, repo, old, there, layers)
	if err != nil {
		return err
	}
	var which []*layerFile
	var total int64
	for i := range layers {
		if l := &layers[i]; l.desc.Size < resumable || likely[i] {
			which, total = append(which, l), total+l.desc.Size
		}
	}
	var bar *progress
	if total > 0 {
		bar = g.progress("hashing", total, true)
		defer bar.Stop()
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pushConcurrency)
	for _, l := range which {
		group.Go(func() error { return l.hash(ctx, bar) })
	}
	return group.Wait()
}

// relatives is how many of the newest versions a push looks at.
const relatives = 3

// likely finds the large files that are as long as one that the tag names, or
// one of the newest versions, and have the same first piece: those are most
// likely the same. Where there is no list of pieces, the length has to do.
func (g *globals) likely(ctx context.Context, repo *remote.Repository, old ocispec.Descriptor, there ocispec.Manifest, layers []layerFile) (likely []bool, err error) {
	likely = make([]bool, len(layers))
	sizes := map[int64]bool{}
	for _, l := range layers {
		if l.desc.Size >= resumable {
			sizes[l.desc.Size] = true
		}
	}
	if len(sizes) == 0 {
		return likely, nil
	}
	for desc, m := range g.relatives(ctx, repo, old, there) {
		var same []ocispec.Descriptor
		for _, l := range m.Layers {
			if sizes[l.Size] {
				same = append(same, l)
			}
		}
		lists := g.pieces(ctx, repo, desc, same)
		for i, l := range layers {
			for _, is := range same {
				if likely[i] || is.Size != l.desc.Size {
					continue
				}
				if likely[i], err = l.begins(lists[is.Digest]); err != nil {
					return nil, err
				}
			}
		}
	}
	return likely, nil
}

// relatives are the manifests of a tag and of the newest versions, as far as
// they can be had. A registry that is not Assay tells no versions.
func (g *globals) relatives(ctx context.Context, repo *remote.Repository, old ocispec.Descriptor, there ocispec.Manifest) iter.Seq2[ocispec.Descriptor, ocispec.Manifest] {
	return func(yield func(ocispec.Descriptor, ocispec.Manifest) bool) {
		if len(there.Layers) > 0 && !yield(old, there) {
			return
		}
		if u, err := g.serverURL(); err != nil || u.Host != repo.Reference.Host() {
			return
		}
		var newest pb.ListVersionsResponse
		q := url.Values{"repository": {repo.Reference.Repository}, "page_size": {strconv.Itoa(relatives)}}
		if g.api(ctx, "GET", "versions", q, nil, &newest) != nil {
			return
		}
		for _, v := range newest.Versions {
			if v.Digest == string(old.Digest) {
				continue
			}
			if desc, m, ok := tagged(ctx, repo, v.Digest); ok && !yield(desc, m) {
				return
			}
		}
	}
}

// begins reports whether the file begins like the blob of a list.
func (l *layerFile) begins(list *attest.Pieces) (bool, error) {
	if list == nil {
		return true, nil
	}
	f, err := os.Open(l.path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, n := list.Range(0)
	first, err := list.Piece(0)
	if err != nil {
		return false, err
	}
	if _, err := io.CopyBuffer(first, onlyReader{io.LimitReader(f, n)}, make([]byte, 128<<10)); err != nil {
		return false, err
	}
	return first.Right()
}

// pushFiles sends the files the registry does not have, several at once. It
// returns how many bytes were sent, and how many are of files that it had.
func pushFiles(ctx context.Context, g *globals, repo *remote.Repository, layers []layerFile, bar *progress) (sent, present int64, err error) {
	var all, had atomic.Int64
	to := newLink(repo)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pushConcurrency)
	for i := range layers {
		l := &layers[i]
		group.Go(func() error {
			n, ok, err := to.push(ctx, l, bar)
			all.Add(n)
			if ok {
				had.Add(l.desc.Size)
			}
			return g.explain(err, "pushing "+l.name)
		})
	}
	err = group.Wait()
	return all.Load(), had.Load(), err
}

// Media types and annotations of the CNCF ModelPack specification
// (https://github.com/modelpack/model-spec, docs/spec.md and
// docs/annotations.md).
const (
	modelPackManifest = "application/vnd.cncf.model.manifest.v1+json"
	modelPackConfig   = "application/vnd.cncf.model.config.v1+json"
	modelPackFilePath = "org.cncf.model.filepath"
)

// modelPack makes manifest a ModelPack of the layers and returns its config.
func modelPack(manifest *ocispec.Manifest, repository string, layers []layerFile, opt pushOptions) ([]byte, error) {
	name := opt.name
	if name == "" {
		name = path.Base(repository)
	}
	type modelFS struct {
		Type    string          `json:"type"`
		DiffIDs []digest.Digest `json:"diffIds"`
	}
	var config struct {
		Descriptor struct {
			CreatedAt string `json:"createdAt"`
			Family    string `json:"family,omitempty"`
			Name      string `json:"name"`
		} `json:"descriptor"`
		Config struct {
			Format string `json:"format,omitempty"`
		} `json:"config"`
		ModelFS modelFS `json:"modelfs"`
	}
	config.Descriptor.CreatedAt = manifest.Annotations[ocispec.AnnotationCreated]
	config.Descriptor.Family = opt.family
	config.Descriptor.Name = name
	config.ModelFS.Type = "layers"
	for _, l := range layers {
		kind := "doc"
		switch ext := strings.ToLower(path.Ext(l.name)); ext {
		case ".onnx", ".safetensors", ".gguf", ".pt", ".pb", ".bin", ".npz":
			kind = "weight"
			config.Config.Format = strings.TrimPrefix(ext, ".")
		case ".json", ".yaml", ".yml", ".txt", ".model":
			kind = "weight.config"
		case ".py", ".go", ".sh", ".ipynb":
			kind = "code"
		case ".csv", ".jsonl", ".parquet", ".arrow":
			kind = "dataset"
		}
		l.desc.MediaType = "application/vnd.cncf.model." + kind + ".v1.raw"
		// The title is what `oras pull` names the file by.
		l.desc.Annotations = map[string]string{modelPackFilePath: l.name, ocispec.AnnotationTitle: l.name}
		manifest.Layers = append(manifest.Layers, l.desc)
		config.ModelFS.DiffIDs = append(config.ModelFS.DiffIDs, l.desc.Digest)
	}
	if config.Config.Format == "" {
		return nil, remedy(usagef("none of the files is a weight file"), "a ModelPack needs one: .onnx, .safetensors, .gguf, .pt, .pb, .bin or .npz")
	}
	manifest.ArtifactType = modelPackManifest
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	manifest.Config = descriptorOf(modelPackConfig, raw)
	return raw, nil
}
