package rpc

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
)

// This file is the one place between what the registry says and what is sent.

// required refuses a request that leaves one of its fields out: name, value,
// name, value, …
func required(fields ...string) error {
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == "" {
			return fmt.Errorf("%w: %s is missing", errRequest, fields[i])
		}
	}
	return nil
}

// moment reads a time of a request. The registry counts nanoseconds from 1970
// in 64 bits; a time outside of them is a mistake and must not become another
// time.
func moment(name string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	at := t.AsTime()
	if err := t.CheckValid(); err != nil || at.Year() < 1970 || at.Year() > 2261 {
		return time.Time{}, fmt.Errorf("%w: %s is no time from 1970 to 2261", errRequest, name)
	}
	return at, nil
}

func asOf(name string, a *pb.AsOf) (registry.AsOf, error) {
	switch m := a.GetMoment().(type) {
	case nil:
		return registry.AsOf{}, nil
	case *pb.AsOf_Time:
		at, err := moment(name+".time", m.Time)
		if err == nil && at.IsZero() {
			err = fmt.Errorf("%w: %s.time is missing", errRequest, name)
		}
		return registry.AsOf{Time: at}, err
	case *pb.AsOf_LogIndex:
		// To the registry, index 0 is now.
		if m.LogIndex < 1 {
			return registry.AsOf{}, fmt.Errorf("%w: %s.log_index is %d, and must be at least 1", errRequest, name, m.LogIndex)
		}
		return registry.AsOf{Index: m.LogIndex}, nil
	default:
		return registry.AsOf{}, fmt.Errorf("%w: %s is a moment of unknown kind", errRequest, name)
	}
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func digests(list []digest.Digest) (out []string) {
	for _, d := range list {
		out = append(out, string(d))
	}
	return out
}

func versionOf(v registry.Version) (*pb.Version, error) {
	out := &pb.Version{
		Repository: v.Repository, Number: int32(v.Number), Digest: string(v.Digest),
		BornAs: v.BornAs, BornAt: timestamp(v.BornAt), LogIndex: v.LogIndex, Tags: v.Tags,
		MediaType: v.MediaType, ArtifactType: v.ArtifactType, Annotations: v.Annotations,
	}
	for _, f := range v.Files {
		out.Files = append(out.Files, &pb.File{Name: f.Name, Digest: string(f.Digest), Size: f.Size, MediaType: f.MediaType})
	}
	return out, nil
}

func tagMoveOf(m registry.TagMove) (*pb.TagMove, error) {
	return &pb.TagMove{
		At: timestamp(m.At), LogIndex: m.Index, From: string(m.From), To: string(m.To), Actor: m.Actor, Reason: m.Reason,
	}, nil
}

func factOf(f registry.Fact) (*pb.Fact, error) {
	return &pb.Fact{
		Subject: string(f.Subject), Referrer: string(f.Referrer), PredicateType: f.PredicateType,
		Outcome: f.Outcome, Message: f.Message, Remedy: f.Remedy, Identity: f.Identity, Role: f.Role,
		TrustDigest: string(f.Trust), AdmittedAt: timestamp(f.At), LogIndex: f.LogIndex, Predicate: string(f.Predicate),
		Holder: f.Holder, SignedAt: timestamp(f.Signed.At), SignedBy: f.Signed.By,
	}, nil
}

func reviewOf(rv registry.Review) *pb.Review {
	out := &pb.Review{
		TrustDigest: string(rv.Trust), StartedAt: timestamp(rv.Started), FinishedAt: timestamp(rv.Finished),
		Examined: int64(rv.Examined), Flipped: int64(rv.Flipped),
	}
	standing := func(s registry.Standing) *pb.Standing {
		return &pb.Standing{Outcome: s.Outcome, Message: s.Message, Remedy: s.Remedy, Identity: s.Identity, Role: s.Role}
	}
	for _, f := range rv.Flips {
		out.Flips = append(out.Flips, &pb.Flip{
			Repository: f.Repository, Subject: string(f.Subject), Referrer: string(f.Referrer), PredicateType: f.PredicateType,
			Before: standing(f.Before), After: standing(f.After),
		})
	}
	return out
}

var nodeKinds = map[string]pb.NodeKind{
	"model":        pb.NodeKind_NODE_KIND_MODEL,
	"dataset":      pb.NodeKind_NODE_KIND_DATASET,
	"code":         pb.NodeKind_NODE_KIND_CODE,
	"training run": pb.NodeKind_NODE_KIND_TRAINING_RUN,
}

var tiers = map[registry.Tier]pb.Tier{
	registry.TierSigned:   pb.Tier_TIER_SIGNED,
	registry.TierVerified: pb.Tier_TIER_VERIFIED,
}

func lineageOf(g *registry.Graph) (*pb.GetLineageResponse, error) {
	out := &pb.GetLineageResponse{Root: string(g.Root), Truncated: g.Truncated}
	for _, n := range g.Nodes {
		kind, ok := nodeKinds[n.Kind]
		if !ok {
			return nil, fmt.Errorf("the graph of %s has a node of unknown kind %q", g.Root, n.Kind)
		}
		id := string(n.Digest)
		if id == "" {
			id = n.Name
		}
		out.Nodes = append(out.Nodes, &pb.Node{
			Id: id, Digest: string(n.Digest), Kind: kind, Repository: n.Repository, Version: int32(n.Version), Tags: n.Tags, Name: n.Name,
		})
	}
	for _, e := range g.Edges {
		tier, ok := tiers[e.Tier]
		if !ok {
			return nil, fmt.Errorf("the graph of %s has an edge of unknown tier %q", g.Root, e.Tier)
		}
		out.Edges = append(out.Edges, &pb.Edge{
			From: e.From, To: e.To, Relation: string(e.Relation), Tier: tier, Why: e.Why,
			Identity: e.Identity, Statement: string(e.Statement), LogIndex: e.LogIndex,
		})
	}
	return out, nil
}

func environmentOf(e registry.Environment) *pb.Environment {
	d := e.Document
	out := &pb.Environment{
		Name: d.Name, Digest: string(e.Digest), Labels: d.Labels, RecordedAt: timestamp(d.RecordedAt),
		Target:      &pb.Target{Protocol: d.Target.Protocol, Url: d.Target.URL, Model: d.Target.Model, Version: d.Target.Version},
		Fingerprint: map[string]*pb.FingerprintField{},
	}
	for k, f := range d.Fingerprint {
		out.Fingerprint[k] = &pb.FingerprintField{Value: f.Value, Assurance: string(f.Assurance)}
	}
	return out
}

func deploymentOf(d registry.Deployment) (*pb.Deployment, error) {
	return &pb.Deployment{
		Environment: d.Environment, EnvironmentDocument: string(d.EnvironmentDocument), Repository: d.Repository,
		Model: string(d.Model), Version: int32(d.Version), Tags: d.Tags, From: timestamp(d.From), Basis: d.Basis,
		StatedBy: d.StatedBy, Identity: d.Identity, Statement: string(d.Statement),
		AdmittedAt: timestamp(d.AdmittedAt), LogIndex: d.LogIndex,
	}, nil
}

func decisionOf(r registry.DecisionRecord) (*pb.DecideResponse, error) {
	canonical, err := r.Bytes()
	if err != nil {
		return nil, err
	}
	d := &pb.Decision{
		Allow: r.Allow, Model: string(r.Model), Repository: r.Repository, Environment: r.Environment,
		EnvironmentDocument: string(r.EnvironmentDocument), PolicyDigest: string(r.Policy), TrustDigest: string(r.Trust), At: timestamp(r.At),
		BreakGlass: r.BreakGlass,
	}
	for _, x := range r.Reasons {
		d.Reasons = append(d.Reasons, &pb.Reason{Code: x.Code, Message: x.Message, Remedy: x.Remedy, Evidence: digests(x.Evidence)})
	}
	out := &pb.DecideResponse{
		Decision: d, Canonical: canonical, LogIndex: r.LogIndex, Repeats: r.Repeats,
		Incomplete: r.Evidence.Incomplete, NoEvidence: r.NoEvidence(r.Evidence),
	}
	for _, f := range r.Evidence.Facts {
		e := &pb.Evidence{
			About: string(f.About), Referrer: string(f.Referrer), PredicateType: f.PredicateType,
			Outcome: f.Outcome, Message: f.Message, Remedy: f.Remedy, Identity: f.Identity, Role: string(f.Role), Holder: f.Holder,
		}
		if f.Signed != nil {
			e.SignedAt, e.SignedBy = timestamp(f.Signed.At), f.Signed.By
		}
		out.Evidence = append(out.Evidence, e)
	}
	return out, nil
}

func leafOf(l registry.Leaf) *pb.Leaf {
	e := l.Event
	event := &pb.Event{
		Kind: e.Kind, At: timestamp(e.At), Actor: e.Actor, Request: e.Request, Repository: e.Repository,
		Digests: digests(e.Digests), Subjects: digests(e.Subjects), Version: int32(e.Version), Artifact: e.Artifact,
		Outcome: e.Outcome, Environment: e.Environment, ReasonHash: e.ReasonHash, Person: e.Person,
	}
	for _, t := range e.Tags {
		event.Tags = append(event.Tags, &pb.TagChange{Tag: t.Tag, From: string(t.From), To: string(t.To)})
	}
	return &pb.Leaf{Index: l.Index, Canonical: l.Bytes, Event: event}
}

func documentOf(d registry.Document) *pb.Document {
	out := &pb.Document{Yaml: string(d.Body), Digest: string(d.Digest), AppliedAt: timestamp(d.At)}
	if d.LogIndex >= 0 {
		out.LogIndex = &d.LogIndex
	}
	return out
}
