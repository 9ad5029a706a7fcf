package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// A Tier says how much an edge of the graph is worth. Signed is not trusted,
// and claimed is not signed.
type Tier string

const (
	TierVerified Tier = "verified" // signed by somebody the trust file trusts to say it
	TierSigned   Tier = "signed"   // signed, and not believed; Edge.Why says why not
)

// A Node is a thing in the graph: a model by its manifest digest, or what a
// statement named.
type Node struct {
	Digest     digest.Digest // "" for code without one
	Kind       string        // "model", "dataset", "code", "training run"
	Repository string
	Version    int
	Tags       []string
	Name       string // as a statement called it: a URI, a revision
}

// An Edge says that From came from To.
type Edge struct {
	From, To  string // node ids: digests, or names of nodes without one
	Relation  attest.Relation
	Tier      Tier
	Why       string        // a signed edge is not verified because …
	Identity  string        // who stated it
	Statement digest.Digest // the manifest that carries the statement
	LogIndex  int64
}

// A Graph is lineage around a model.
type Graph struct {
	Root  digest.Digest
	Nodes []Node
	Edges []Edge

	// Truncated says that the graph goes on beyond what is shown.
	Truncated bool
}

// Bounds of a graph.
const (
	maxLineageDepth = 32
	maxLineageNodes = 1_000
)

// Lineage returns what a model came from (or, downward, what came from it), as
// the statements in the repositories that the actor may read say.
func (r *Registry) Lineage(ctx context.Context, actor access.Actor, repo, reference string, downward bool, depth int) (*Graph, error) {
	root, err := r.StatManifest(ctx, actor, repo, reference)
	if err != nil {
		return nil, err
	}
	if depth <= 0 || depth > maxLineageDepth {
		depth = maxLineageDepth
	}
	g := &grower{actor: actor, graph: &Graph{Root: root.Digest}, seen: map[string]bool{}}
	err = r.view(ctx, func(rd store.Reader) error {
		g.rd = rd
		g.graph.Nodes, g.graph.Edges, g.graph.Truncated = nil, nil, false
		clear(g.seen)
		if err := g.model(repo, root.Digest, ""); err != nil {
			return err
		}
		if downward {
			return g.down(root.Digest, depth)
		}
		return g.up(repo, root.Digest, depth)
	})
	return g.graph, err
}

type grower struct {
	rd    store.Reader
	actor access.Actor
	graph *Graph
	seen  map[string]bool
}

// node adds a node unless it is there, and reports whether it was new.
func (g *grower) node(n Node) (id string, added bool) {
	id = string(n.Digest)
	if id == "" {
		id = n.Name
	}
	if g.seen[id] {
		return id, false
	}
	if len(g.graph.Nodes) >= maxLineageNodes {
		g.graph.Truncated = true
		return id, false
	}
	g.seen[id] = true
	g.graph.Nodes = append(g.graph.Nodes, n)
	return id, true
}

// model adds a model with its version and tags.
func (g *grower) model(repo string, d digest.Digest, name string) error {
	n := Node{Digest: d, Kind: "model", Repository: repo, Name: name}
	if raw, err := g.rd.Get(key("versionof", repo, string(d))); err == nil {
		n.Version = versionNumber(raw)
	}
	for row, err := range g.rd.Scan(under("tag", repo)) {
		if err != nil {
			return err
		}
		var now tagRow
		if err := decode(row, &now); err != nil {
			return err
		}
		if now.Digest == d {
			n.Tags = append(n.Tags, parts(row.Key)[1])
		}
	}
	g.node(n)
	return nil
}

// up follows the statements about a model to what it came from.
func (g *grower) up(repo string, d digest.Digest, depth int) error {
	facts, err := factsAbout(g.rd, repo, d)
	if err != nil {
		return err
	}
	for _, f := range facts {
		if f.PredicateType != attest.PredicateLineage {
			continue
		}
		p, err := attest.ParsePredicate(attest.Statement{PredicateType: f.PredicateType, Predicate: f.Predicate})
		if err != nil {
			continue // the fact says that it is malformed
		}
		l := p.(attest.Lineage)
		edge := func(to string, relation attest.Relation) {
			g.graph.Edges = append(g.graph.Edges, edgeOf(f, string(d), to, relation))
		}
		for _, x := range l.Parents {
			parent, err := x.Digest.OCI()
			if err != nil {
				continue
			}
			edge(string(parent), x.Relation)
			home := x.Repository
			if home == "" {
				home = repo
			}
			if g.seen[string(parent)] {
				continue
			}
			if g.actor.Authorize(access.Pull, home) != nil {
				g.node(Node{Digest: parent, Kind: "model", Name: x.Name})
				continue
			}
			if err := g.model(home, parent, strings.TrimSpace(x.Name+" "+x.Version)); err != nil {
				return err
			}
			if depth == 1 {
				g.graph.Truncated = true
				continue
			}
			if err := g.up(home, parent, depth-1); err != nil {
				return err
			}
		}
		for _, x := range l.Datasets {
			o, err := x.Digest.OCI()
			if err != nil {
				continue
			}
			id, _ := g.node(Node{Digest: o, Kind: "dataset", Name: nameOf(x.Resource)})
			edge(id, x.Relation)
		}
		for _, x := range l.Code {
			id, _ := g.node(Node{Kind: "code", Name: x.URI + "@" + x.Revision})
			edge(id, x.Relation)
		}
		if l.TrainingRun != nil {
			id, _ := g.node(Node{Kind: "training run", Name: l.TrainingRun.ID})
			edge(id, attest.ProducedBy)
		}
	}
	return nil
}

func nameOf(r attest.Resource) string {
	if r.Name != "" {
		return r.Name
	}
	return r.URI
}

func edgeOf(f Fact, from, to string, relation attest.Relation) Edge {
	e := Edge{From: from, To: to, Relation: relation, Tier: TierVerified, Identity: f.Identity, Statement: f.Referrer, LogIndex: f.LogIndex}
	if f.Outcome != verify.OutcomeVerified {
		e.Tier, e.Why = TierSigned, f.Outcome+": "+f.Message
	}
	return e
}

// down follows the edges that name a thing to what came from it.
func (g *grower) down(object digest.Digest, depth int) error {
	type found struct {
		repo               string
		subject, statement digest.Digest
		relation           attest.Relation
	}
	var list []found
	for row, err := range g.rd.Scan(under("edge", string(object))) {
		if err != nil {
			return err
		}
		var e edgeRow
		if err := decode(row, &e); err != nil {
			return err
		}
		p := parts(row.Key)
		list = append(list, found{p[1], digest.Digest(p[2]), digest.Digest(p[3]), e.Relation})
	}
	for _, x := range list {
		if g.actor.Authorize(access.Pull, x.repo) != nil {
			continue
		}
		facts, err := factsAbout(g.rd, x.repo, x.subject)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(facts, func(f Fact) bool { return f.Referrer == x.statement })
		if i < 0 {
			return fmt.Errorf("edge from %s has no statement; run 'assay fsck'", object)
		}
		known := g.seen[string(x.subject)]
		if !known {
			if err := g.model(x.repo, x.subject, ""); err != nil {
				return err
			}
		}
		g.graph.Edges = append(g.graph.Edges, edgeOf(facts[i], string(x.subject), string(object), x.relation))
		if known {
			continue
		}
		if depth == 1 {
			g.graph.Truncated = true
			continue
		}
		if err := g.down(x.subject, depth-1); err != nil {
			return err
		}
	}
	return nil
}
