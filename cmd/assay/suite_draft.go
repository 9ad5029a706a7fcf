package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/ingest"
	"github.com/assay-dev/assay/verify/attest"
)

func newSuiteNewCommand(g *globals) *cobra.Command {
	var o criteriaFlags
	var name string
	c := &cobra.Command{
		Use:   "new FOLDER",
		Short: "Begin a draft of a suite",
		Long: `Make a folder for a draft of a suite: what it shall claim, and cases to draw from.
How many cases the claim needs is computed and said in words. Cases come in by
'assay suite add' and 'assay suite import'; then a reference is asked ('assay
suite record --draft'), or, if all cases bring their golden outputs, the draft is
pushed as it is ('assay suite push').

The defaults: no more than 1 % of decisions may differ, with 95 % confidence, and
no flip is allowed. Cases that are not independent of each other, such as questions
about one document, belong into one cluster (--cluster-by, or "cluster" beside a
case): the claim is then about clusters. With --allowed 2 or 3 an environment is less often refused
for one unlucky case, and needs more cases.`,
		Example: "  assay suite new draft --labels decline,approve --threshold 0.5 --classification synthetic --margin 0.01",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			criteria, err := o.criteria(cmd.Flags())
			if err != nil {
				return err
			}
			if name == "" {
				name = filepath.Base(filepath.Clean(args[0]))
			}
			d := conformance.Draft{Version: 1, Name: name, DataClassification: o.classification, Border: o.border, Criteria: criteria, ClusterBy: o.clusterBy}
			if err := conformance.CreateDraft(args[0], d); err != nil {
				return err
			}
			d, cases, err := conformance.OpenDraft(args[0])
			if err != nil {
				return err
			}
			return printDraft(g, args[0], d, cases)
		},
	}
	o.register(c.Flags())
	c.Flags().StringVar(&name, "name", "", "the suite's name (default: the folder's)")
	c.MarkFlagRequired("classification")
	return c
}

func newSuiteAddCommand(g *globals) *cobra.Command {
	var file, id, label, stratum, cluster, request string
	var sealed bool
	var inputs, outputs []string
	var slice map[string]string
	c := &cobra.Command{
		Use:   "add FOLDER",
		Short: "Add cases to a draft",
		Long: `Add cases to a draft: those of a file (--cases; - is the standard input), a case a
line, or one that is written on the command line:

  --input NAME=FILE    a tensor as JSON: {"datatype":"FP32","shape":[1,2],"data":[1,2]}
  --input NAME={…}     the same, here
  --output NAME=…      a golden output, in the same form
  --request FILE       a request in the words of the protocol, for texts and embeddings;
                       or {…}, the same, here

All cases are added, or with an error none.`,
		Example: `  assay suite add draft --cases cases.jsonl
  assay suite add draft --id edge-1 --input 'features={"datatype":"FP32","shape":[1,2],"data":[0.5,1]}' --label approve --slice region=eu --stratum border`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var cases []conformance.Candidate
			from := file
			if file != "" {
				in := io.Reader(g.in)
				if file != "-" {
					f, err := os.Open(file)
					if err != nil {
						return remedy(err, "name the file with --cases")
					}
					defer f.Close()
					in = f
				}
				var err error
				if cases, err = conformance.ReadCandidates(in); err != nil {
					return err
				}
			} else {
				one := conformance.Candidate{ID: id, Label: label, Slice: slice, Stratum: stratum}
				var err error
				if request != "" {
					if one.Request, err = documentFlag(request); err != nil {
						return fmt.Errorf("--request: %w", err)
					}
				}
				if one.Inputs, err = tensorFlags("input", inputs); err != nil {
					return err
				}
				if one.Outputs, err = tensorFlags("output", outputs); err != nil {
					return err
				}
				cases, from = []conformance.Candidate{one}, "the command line"
			}
			for i := range cases {
				cases[i].Sealed = cases[i].Sealed || sealed
				if cluster != "" {
					cases[i].Cluster = cluster
				}
			}
			d, all, err := conformance.AddCases(args[0], cases, conformance.Added{From: from})
			if err != nil {
				return remedy(err, "nothing was added to %s", args[0])
			}
			return printDraft(g, args[0], d, all)
		},
	}
	f := c.Flags()
	f.StringVar(&file, "cases", "", "a file with cases (JSON lines), - for the standard input")
	f.StringVar(&id, "id", "", "the case's id")
	f.StringArrayVar(&inputs, "input", nil, "an input, NAME=FILE or NAME=JSON; repeatable")
	f.StringArrayVar(&outputs, "output", nil, "a golden output, NAME=FILE or NAME=JSON; repeatable")
	f.StringVar(&request, "request", "", "what is asked, as a file or as JSON")
	f.StringVar(&label, "label", "", "what is right, if it is known; compared only with what both environments decide (--limit accuracy-loss)")
	f.StringVar(&cluster, "cluster", "", "the cases are not independent of each other, nor of others with this cluster: they are drawn and counted together")
	f.StringToStringVar(&slice, "slice", nil, "tags for reports by group, KEY=VALUE")
	f.StringVar(&stratum, "stratum", "", "claim: never a border case; border: a border case before all others")
	f.BoolVar(&sealed, "sealed", false, "the cases are to be in the sealed part of the suite")
	c.MarkFlagsOneRequired("cases", "id")
	c.MarkFlagsMutuallyExclusive("cases", "id")
	c.MarkFlagsMutuallyExclusive("cases", "input")
	c.MarkFlagsMutuallyExclusive("cases", "request")
	c.MarkFlagsMutuallyExclusive("input", "request")
	return c
}

// documentFlag reads FILE or {…}.
func documentFlag(value string) ([]byte, error) {
	if strings.HasPrefix(strings.TrimSpace(value), "{") {
		return []byte(value), nil
	}
	return os.ReadFile(value)
}

// tensorFlags reads NAME=FILE and NAME={…}.
func tensorFlags(flag string, list []string) (map[string]conformance.CandidateTensor, error) {
	tensors := map[string]conformance.CandidateTensor{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, usagef("--%s %q: write NAME=FILE or NAME={…}", flag, s)
		}
		raw, err := documentFlag(value)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", flag, name, err)
		}
		var t conformance.CandidateTensor
		if err := attest.Unmarshal(raw, &t); err != nil {
			return nil, fmt.Errorf("--%s %s: %w", flag, name, err)
		}
		tensors[name] = t
	}
	return tensors, nil
}

func newSuiteImportCommand(g *globals) *cobra.Command {
	var o ingest.Options
	var format, stratum string
	var sealed bool
	var slice map[string]string
	c := &cobra.Command{
		Use:   "import FOLDER PATH --format FORMAT",
		Short: "Add cases to a draft that are in another format",
		Long: `Add cases to a draft from a file or folder in another format:

  onnx         test_data_set_N/input_M.pb and output_M.pb (the folder of one, or of several)
  mlflow       input_example.json: a pandas data frame (split), instances or inputs
  jsonl        requests, one a line: Open Inference Protocol, instances, inputs, data frames
  npz          a NumPy archive; the first axis of its arrays counts cases
  safetensors  likewise, or the tensors.safetensors of a golden suite

What was left out or taken to be something is said, and kept in the draft.`,
		Example: `  assay suite import draft ./mnist --format onnx
  assay suite import draft test.npz --format npz --inputs x --label y --datatype FP32
  assay suite import draft input_example.json --format mlflow --join features`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			read, ok := ingest.Formats[format]
			if !ok {
				return usagef("--format %q is unknown: use one of %s", format, strings.Join(formatNames(), ", "))
			}
			if _, _, err := conformance.OpenDraft(args[0]); err != nil {
				return remedy(err, "assay suite new %s …", args[0])
			}
			r, err := read(args[1], o)
			if err != nil {
				return remedy(fmt.Errorf("importing %s: %w", args[1], err), "is it %s? other formats are %s", format, strings.Join(formatNames(), ", "))
			}
			var cases []conformance.Candidate
			tensors := func(m map[string]ingest.Tensor) map[string]conformance.CandidateTensor {
				if len(m) == 0 {
					return nil
				}
				out := map[string]conformance.CandidateTensor{}
				for name, t := range m {
					out[name] = conformance.CandidateTensor(t)
				}
				return out
			}
			for _, c := range r.Cases {
				cases = append(cases, conformance.Candidate{ID: c.ID, Inputs: tensors(c.Inputs), Outputs: tensors(c.Outputs), Label: c.Label, Slice: slice, Stratum: stratum, Sealed: sealed})
			}
			d, all, err := conformance.AddCases(args[0], cases, conformance.Added{From: format + " " + filepath.Base(args[1]), Notes: shorten(r.Notes)})
			if err != nil {
				return remedy(err, "nothing was added to %s; --prefix keeps ids apart", args[0])
			}
			for _, n := range r.Notes {
				g.note("%s: %s", args[1], n)
			}
			return printDraft(g, args[0], d, all)
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "", "the format: "+strings.Join(formatNames(), ", "))
	f.StringVar(&o.Prefix, "prefix", "", "what the ids of cases begin with that have none of their own")
	f.StringSliceVar(&o.Inputs, "inputs", nil, "the names that are inputs (default: all others)")
	f.StringSliceVar(&o.Outputs, "outputs", nil, "the names that are golden outputs")
	f.StringVar(&o.Label, "label", "", "the name that has the labels")
	f.StringVar(&o.Datatype, "datatype", "", "the type of numbers where the format has none (default: FP32)")
	f.StringVar(&o.Join, "join", "", "put the columns of a table into one input of this name")
	f.BoolVar(&o.Whole, "whole", false, "take arrays as one case, not their rows as cases")
	f.StringToStringVar(&slice, "slice", nil, "tags for the cases, KEY=VALUE")
	f.StringVar(&stratum, "stratum", "", "claim or border, as in 'assay suite add'")
	f.BoolVar(&sealed, "sealed", false, "the cases are to be in the sealed part of the suite")
	c.MarkFlagRequired("format")
	return c
}

func formatNames() (list []string) {
	for name := range ingest.Formats {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// maxNotes is how many notes of an import a draft keeps in words.
const maxNotes = 100

func shorten(notes []string) []string {
	if len(notes) <= maxNotes {
		return notes
	}
	return append(slices.Clone(notes[:maxNotes]), "and "+strconv.Itoa(len(notes)-maxNotes)+" more")
}

func newSuitePushCommand(g *globals) *cobra.Command {
	var model, folder string
	var t targetFlags
	c := &cobra.Command{
		Use:   "push FOLDER REFERENCE",
		Short: "Push a draft whose cases bring their golden outputs",
		Long: `Make a suite of a draft and push it, without asking a reference: every case has to
bring its golden outputs, as those of an ONNX test data set do. No noise floor
is measured then: the suite says so, and notes what the outputs' types can hold.`,
		Example: "  assay suite push draft credit/suite:1 --model credit/scorer:1.4.0 --name credit",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			d, cases, err := conformance.OpenDraft(args[0])
			if err != nil {
				return remedy(err, "assay suite new %s …", args[0])
			}
			repo, tag, err := g.repository(args[1])
			if err != nil {
				return err
			}
			if tag == "" {
				return usagef("%q has no tag to push to", args[1])
			}
			_, desc, err := g.resolve(ctx, model)
			if err != nil {
				return err
			}
			to, err := t.target()
			if err != nil {
				return err
			}
			suite, err := d.Suite(cases, conformance.SuiteOptions{Model: attest.ResourceOf("", desc.Digest), Target: to, Clock: time.Now})
			if err != nil {
				return remedy(fmt.Errorf("draft %s: %w", args[0], err), "'assay suite show %s' says what it lacks", args[0])
			}
			if err := sealable(cases, folder); err != nil {
				return err
			}
			if err := seal(suite, cases, folder); err != nil {
				return err
			}
			a, err := suite.Artifact()
			if err != nil {
				return err
			}
			if err := g.pushDocument(ctx, repo, a, tag); err != nil {
				return err
			}
			return printSuite(g, suite, string(a.Descriptor.Digest))
		},
	}
	c.Flags().StringVar(&model, "model", "", "the model version that the golden outputs are of")
	c.Flags().StringVar(&folder, "seal", "", sealUsage)
	t.register(c.Flags(), "name")
	c.Flags().MarkHidden("url") // nobody is asked
	c.MarkFlagRequired("model")
	c.MarkFlagRequired("name")
	return c
}

// printDraft shows a draft: what it shall claim, and what it lacks.
func printDraft(g *globals, dir string, d conformance.Draft, cases []conformance.Candidate) error {
	golden, wrong := conformance.Ready(cases)
	need := d.Criteria.Plan.N + d.Border
	lacks := []string{}
	clusters := conformance.ClustersOf(cases)
	switch {
	case clusters > 0 && clusters < d.Criteria.Plan.N:
		lacks = append(lacks, fmt.Sprintf("%d more clusters: %d are drawn, and the %d cases are in %d", d.Criteria.Plan.N-clusters, d.Criteria.Plan.N, len(cases), clusters))
	case len(cases) < need:
		lacks = append(lacks, fmt.Sprintf("%d more cases: %d claim and %d border cases are drawn, and there are %d", need-len(cases), d.Criteria.Plan.N, d.Border, len(cases)))
	}
	if wrong != "" {
		lacks = append(lacks, "inputs that can be replayed: "+wrong)
	}
	return g.print(struct {
		Folder string            `json:"folder"`
		Draft  conformance.Draft `json:"draft"`
		Plan   []string          `json:"plan"`
		Cases  int               `json:"cases"`
		Golden int               `json:"golden"`
		Lacks  []string          `json:"lacks"`
	}{dir, d, conformance.PlanWords(d.Criteria, clusters > 0), len(cases), golden, lacks}, func(w io.Writer) {
		fmt.Fprintf(w, "draft %s of suite %s, %s data\n", dir, d.Name, d.DataClassification)
		for _, line := range conformance.PlanWords(d.Criteria, clusters > 0) {
			fmt.Fprintf(w, "  %s\n", line)
		}
		for _, o := range d.Criteria.Outputs {
			fmt.Fprintf(w, "  %s decides (%s: %s)\n", o.Output, o.Decision.Kind, strings.Join(o.Decision.Labels, ", "))
		}
		if clusters > 0 {
			fmt.Fprintf(w, "  the cases are in %d clusters\n", clusters)
		}
		fmt.Fprintf(w, "  %d cases, %d of them with golden outputs\n", len(cases), golden)
		if n := len(toSeal(cases)); n > 0 {
			fmt.Fprintf(w, "  %d cases are to be sealed (--seal FOLDER when it is recorded or pushed)\n", n)
		}
		for _, a := range d.Added {
			fmt.Fprintf(w, "  added  %d from %s\n", a.Cases, a.From)
			for _, n := range a.Notes {
				fmt.Fprintf(w, "    note %s\n", n)
			}
		}
		for _, l := range lacks {
			fmt.Fprintf(w, "  lacks  %s\n", l)
		}
		if len(lacks) == 0 {
			next := "assay suite record REFERENCE --draft " + dir
			if golden == len(cases) {
				next += ", or assay suite push " + dir + " REFERENCE"
			}
			fmt.Fprintf(w, "  next   %s\n", next)
		}
	})
}
