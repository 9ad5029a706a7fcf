package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program. It returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	g := &globals{in: in, out: out, err: errOut}
	root := newRootCommand(g)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// A verdict is an answer, not an accident: the command has printed it.
	var v *verdictError
	if errors.As(err, &v) {
		return v.code
	}
	g.printError(err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitError
}

func newRootCommand(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "assay",
		Short: "A model registry that can prove what runs where, and that it behaves the same",
		Long: `Assay stores signed model versions with their lineage in an OCI registry,
replays golden inputs against every environment a model is deployed to,
certifies the environments that behave as the reference does, and refuses
deployments for which the evidence is missing.

  assay serve                         start a registry on this machine
  assay push credit/scorer:1.4.0 …    push a model (or use oras, crane, docker, kit)
  assay sign, lineage record          say who released it and where it came from
  assay suite, env, replay, judge     measure it where it runs
  assay certify                       sign the outcome
  assay gate                          may this version be deployed there?
  assay log verify                    check a proof without the server

A model reference is REPOSITORY:TAG or REPOSITORY@DIGEST; without a host it
is looked up on the server given by --server or ASSAY_SERVER.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := fillFlags(cmd); err != nil {
				return err
			}
			return g.check()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see '%s --help'", err, cmd.CommandPath())
	})
	g.addFlags(root.PersistentFlags())
	root.AddGroup(
		&cobra.Group{ID: "server", Title: "Server:"},
		&cobra.Group{ID: "model", Title: "Models:"},
		&cobra.Group{ID: "trust", Title: "Trust:"},
		&cobra.Group{ID: "conformance", Title: "Conformance:"},
		&cobra.Group{ID: "record", Title: "Deployment and record:"},
	)
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"server", []*cobra.Command{newServeCommand(g), newLoginCommand(g), newAccessCommand(g), newGCCommand(g), newScrubCommand(g), newBackupCommand(g), newRestoreCommand(g), newFsckCommand(g)}},
		{"model", []*cobra.Command{newPushCommand(g), newPullCommand(g), newVersionsCommand(g), newShowCommand(g)}},
		{"trust", []*cobra.Command{newKeysCommand(g), newTrustCommand(g), newPolicyCommand(g), newSignCommand(g), newAttestCommand(g), newApproveCommand(g), newPersonCommand(g), newVerifyCommand(g), newLineageCommand(g), newWithdrawCommand(g)}},
		{"conformance", []*cobra.Command{newSuiteCommand(g), newEnvCommand(g), newReplayCommand(g), newJudgeCommand(g), newCertifyCommand(g)}},
		{"record", []*cobra.Command{newDeployCommand(g), newGateCommand(g), newLogCommand(g)}},
	} {
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(newVersionCommand(g))
	argumentsAreUsage(root)
	return root
}

// argumentsAreUsage makes wrong arguments of a command, and commands that do
// not exist, errors of the command line.
func argumentsAreUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usagef("%w; see '%s --help'", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		argumentsAreUsage(sub)
	}
}
