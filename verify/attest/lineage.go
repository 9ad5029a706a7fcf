package attest

import (
	"errors"
	"fmt"
	"time"
)

// A Relation says how a model came from another thing. The words are those
// of W3C PROV with machine-learning sub-types.
type Relation string

const (
	RevisionOf    Relation = "revisionOf" // a newer training of the same model
	FinetunedFrom Relation = "finetunedFrom"
	QuantizedFrom Relation = "quantizedFrom"
	MergedFrom    Relation = "mergedFrom"
	DistilledFrom Relation = "distilledFrom"
	TrainedOn     Relation = "trainedOn"
	EvaluatedOn   Relation = "evaluatedOn"
	BuiltFrom     Relation = "builtFrom"  // code
	ProducedBy    Relation = "producedBy" // training run
)

// Lineage says where a model came from. Subject: the model's manifest digest.
type Lineage struct {
	Parents     []Parent     `json:"parents"`
	Datasets    []Dataset    `json:"datasets"`
	Code        []Code       `json:"code"`
	TrainingRun *TrainingRun `json:"trainingRun,omitempty"`
	RecordedAt  time.Time    `json:"recordedAt"`
}

// A Parent is a model this one came from, by manifest digest.
type Parent struct {
	Relation   Relation `json:"relation"`
	Repository string   `json:"repository,omitempty"`
	Version    string   `json:"version,omitempty"`
	Resource
}

// A Dataset is data the model learned from or was measured on. How says how
// the digest was made, so that somebody else can make it again.
type Dataset struct {
	Relation Relation `json:"relation"`
	How      string   `json:"how"`
	Resource
}

// Code is a source repository at a revision.
type Code struct {
	Relation Relation `json:"relation"`
	Revision string   `json:"revision"`
	Resource
}

// A TrainingRun is the user's: when it ran, under which id, where.
type TrainingRun struct {
	ID         string    `json:"id"`
	URI        string    `json:"uri,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
}

// PredicateType implements [Predicate].
func (Lineage) PredicateType() string { return PredicateLineage }

// Validate implements [Predicate].
func (l Lineage) Validate() error {
	if len(l.Parents)+len(l.Datasets)+len(l.Code) == 0 && l.TrainingRun == nil {
		return errors.New("lineage names nothing: give a parent, a dataset, code or a training run")
	}
	if l.RecordedAt.IsZero() {
		return errors.New("recordedAt is missing")
	}
	for i, p := range l.Parents {
		switch p.Relation {
		case RevisionOf, FinetunedFrom, QuantizedFrom, MergedFrom, DistilledFrom:
		default:
			return fmt.Errorf("parent %d: unknown relation %q", i+1, p.Relation)
		}
		if _, err := p.Digest.OCI(); err != nil {
			return fmt.Errorf("parent %d: %w", i+1, err)
		}
	}
	for i, d := range l.Datasets {
		if d.Relation != TrainedOn && d.Relation != EvaluatedOn {
			return fmt.Errorf("dataset %d: unknown relation %q", i+1, d.Relation)
		}
		if _, err := d.Digest.OCI(); err != nil {
			return fmt.Errorf("dataset %d: %w", i+1, err)
		}
		if d.How == "" {
			return fmt.Errorf("dataset %d: say how its digest was made", i+1)
		}
	}
	for i, c := range l.Code {
		if c.Relation != BuiltFrom {
			return fmt.Errorf("code %d: unknown relation %q", i+1, c.Relation)
		}
		if c.URI == "" || c.Revision == "" {
			return fmt.Errorf("code %d: uri and revision are both needed", i+1)
		}
	}
	return nil
}
