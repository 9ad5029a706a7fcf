package oip

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// Target implements [target.Target] and [target.Prober] over HTTP.
type Target struct {
	target.Protocol
	binary  bool
	base    string // …/v2/models/NAME[/versions/VERSION]
	root    string
	model   string
	version string
	client  *wire.Client
}

var (
	_ target.Target = (*Target)(nil)
	_ target.Prober = (*Target)(nil)
)

// Options are those of a target document, for REST and gRPC.
type Options struct {
	TokenFrom string `json:"tokenFrom,omitempty"` // the environment variable with the bearer token
}

// New returns the target over REST that an environment document names.
func New(t attest.Target) (*Target, error) {
	var o Options
	if err := t.ReadOptions(&o); err != nil {
		return nil, err
	}
	tg := &Target{model: t.Model, version: t.Version}
	switch t.Protocol {
	case Name:
		tg.Protocol = Protocol{}
	case NameBinary:
		tg.Protocol, tg.binary = Binary{}, true
	default:
		return nil, fmt.Errorf("protocol %q is neither %s nor %s", t.Protocol, Name, NameBinary)
	}
	root, err := wire.Base(t.URL)
	if err != nil {
		return nil, err
	}
	if tg.client, err = wire.NewClient(o.TokenFrom); err != nil {
		return nil, err
	}
	tg.root = root
	tg.base = root + "/v2/models/" + url.PathEscape(t.Model)
	if t.Version != "" {
		tg.base += "/versions/" + url.PathEscape(t.Version)
	}
	return tg, nil
}

// Send implements [target.Target].
func (t *Target) Send(ctx context.Context, request []byte) target.Exchange {
	header := map[string]string{"Content-Type": "application/json", "Accept": "application/json"}
	if t.binary {
		header["Content-Type"], header["Accept"] = "application/octet-stream", "application/octet-stream, application/json"
		header["Inference-Header-Content-Length"] = strconv.Itoa(headerLength(request))
	}
	return t.client.Send(ctx, http.MethodPost, t.base+"/infer", header, request)
}

// Describe implements [target.Target]. Where the server has the extension
// model_configuration, what decides on the numbers is among the parameters.
func (t *Target) Describe(ctx context.Context) (target.Description, error) {
	var d target.Description
	if err := t.client.Get(ctx, t.base+"/ready", nil); err != nil {
		return d, fmt.Errorf("model %s is not ready: %w", t.model, err)
	}
	var server serverMetadata
	if err := t.client.Get(ctx, t.root+"/v2", &server); err != nil {
		return d, err
	}
	if t.binary && !slices.Contains(server.Extensions, "binary_tensor_data") {
		return d, fmt.Errorf("the server does not declare the extension binary_tensor_data; register it with the protocol %s", Name)
	}
	type spec struct {
		Name     string  `json:"name"`
		Datatype string  `json:"datatype"`
		Shape    []int64 `json:"shape"`
	}
	var model struct {
		Name       string            `json:"name"`
		Versions   []string          `json:"versions"`
		Platform   string            `json:"platform"`
		Inputs     []spec            `json:"inputs"`
		Outputs    []spec            `json:"outputs"`
		Parameters map[string]string `json:"parameters"`
	}
	if err := t.client.Get(ctx, t.base, &model); err != nil {
		return d, err
	}
	d = target.Description{
		Server: server.Name, ServerVersion: server.Version, Model: model.Name, Versions: model.Versions,
		Platform: model.Platform, Parameters: model.Parameters,
	}
	for _, s := range model.Inputs {
		d.Inputs = append(d.Inputs, target.Spec(s))
	}
	for _, s := range model.Outputs {
		d.Outputs = append(d.Outputs, target.Spec(s))
	}
	if slices.Contains(server.Extensions, "model_configuration") {
		var c modelConfig
		if err := t.client.Get(ctx, t.base+"/config", &c); err != nil {
			return d, fmt.Errorf("the server declares the extension model_configuration: %w", err)
		}
		if d.Parameters == nil {
			d.Parameters = map[string]string{}
		}
		maps.Copy(d.Parameters, c.evidence())
	}
	return d, nil
}

type serverMetadata struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	Extensions []string `json:"extensions"`
}

// A modelConfig is what of Triton's ModelConfig can change the numbers or
// who computes them. Integers of 64 bits are strings in its JSON.
type modelConfig struct {
	Backend         string                     `json:"backend"`
	MaxBatchSize    json.Number                `json:"max_batch_size"`
	Optimization    json.RawMessage            `json:"optimization"`
	ResponseCache   *responseCache             `json:"response_cache"`
	DynamicBatching json.RawMessage            `json:"dynamic_batching"`
	InstanceGroup   []instanceGroup            `json:"instance_group"`
	Parameters      map[string]configParameter `json:"parameters"`
}

type responseCache struct {
	Enable bool `json:"enable"`
}

type instanceGroup struct {
	Name  string      `json:"name"`
	Kind  string      `json:"kind"`
	Count json.Number `json:"count"`
	GPUs  []int       `json:"gpus"`
}

type configParameter struct {
	StringValue string `json:"string_value"`
}

func (c modelConfig) evidence() map[string]string {
	e := map[string]string{}
	set := func(name, value string) {
		if value != "" && value != "{}" && value != "null" {
			e["config."+name] = value
		}
	}
	set("backend", c.Backend)
	set("max_batch_size", string(c.MaxBatchSize))
	set("dynamic_batching", compact(c.DynamicBatching))
	set("optimization", compact(c.Optimization))
	set("response_cache", strconv.FormatBool(c.ResponseCache != nil && c.ResponseCache.Enable))
	var groups []string
	for _, g := range c.InstanceGroup {
		groups = append(groups, strings.TrimSpace(fmt.Sprintf("%s x%s %s", g.Kind, g.Count, strings.Trim(strings.Join(strings.Fields(fmt.Sprint(g.GPUs)), ","), "[]"))))
	}
	set("instance_group", strings.Join(groups, "; "))
	for k, v := range c.Parameters {
		set("parameter."+k, v.StringValue)
	}
	return e
}

func compact(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return ""
	}
	out, err := json.Marshal(v) // members in order
	if err != nil {
		return ""
	}
	return string(out)
}

// statistics are those that tell an inference from a cache hit.
type statistics struct {
	Inferences, Executions, Success, CacheHits uint64
}

func (t *Target) statistics(ctx context.Context) (statistics, error) {
	type duration struct {
		Count uint64 `json:"count"`
	}
	var r struct {
		Models []struct {
			Name       string `json:"name"`
			Version    string `json:"version"`
			Inferences uint64 `json:"inference_count"`
			Executions uint64 `json:"execution_count"`
			Stats      struct {
				Success  duration `json:"success"`
				CacheHit duration `json:"cache_hit"`
			} `json:"inference_stats"`
		} `json:"model_stats"`
	}
	if err := t.client.Get(ctx, t.base+"/stats", &r); err != nil {
		return statistics{}, err
	}
	for _, m := range r.Models {
		if m.Name == t.model && (t.version == "" || m.Version == t.version) {
			return statistics{m.Inferences, m.Executions, m.Stats.Success.Count, m.Stats.CacheHit.Count}, nil
		}
	}
	return statistics{}, fmt.Errorf("the statistics do not have model %s", t.model)
}

// Probe implements [target.Prober]: with Triton's statistics it shows whether
// the model computed what it was asked. A server without the extension is not
// asked.
func (t *Target) Probe(ctx context.Context, q target.Question) []target.Check {
	var server serverMetadata
	if err := t.client.Get(ctx, t.root+"/v2", &server); err != nil {
		return []target.Check{{Name: computes, Detail: err.Error()}}
	}
	if !slices.Contains(server.Extensions, "statistics") {
		return nil
	}
	return []target.Check{probeCache(ctx, t, q, t.statistics)}
}

// computes is the name of a check.
const computes = "computes what it is asked"

// probeCache asks the same question twice and looks whether the model computed
// twice: "this DOES NOT include cache hits" (inference_count).
func probeCache(ctx context.Context, t target.Target, q target.Question, statistics func(context.Context) (statistics, error)) target.Check {
	failed := func(err error) target.Check { return target.Check{Name: computes, Detail: err.Error()} }
	before, err := statistics(ctx)
	if err != nil {
		return failed(err)
	}
	request, err := t.Encode(q)
	if err != nil {
		return failed(err)
	}
	for range 2 {
		if x := t.Send(ctx, request); x.Failure != nil {
			return failed(x.Failure)
		}
	}
	after, err := statistics(ctx)
	if err != nil {
		return failed(err)
	}
	c := target.Check{Name: computes}
	switch {
	case after.CacheHits != before.CacheHits:
		c.Detail = "a question that was asked twice was answered from its response cache; switch response_cache off"
	case after.Inferences < before.Inferences+2:
		c.Detail = fmt.Sprintf("it was asked twice, and its statistics count %d inferences before and %d after", before.Inferences, after.Inferences)
	default:
		c.Passed = true
		c.Detail = "its statistics count two inferences for a question asked twice, and no cache hit"
	}
	return c
}
