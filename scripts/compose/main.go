// Prints docker-compose.yml as the compose client reads it (its own loader: merged,
// interpolated, checked), as JSON. For machines without a container engine.
//
//	compose-config DIRECTORY ENV-FILE [PROFILE...]
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "compose-config:", err)
		os.Exit(1)
	}
}

func run(directory, envFile string, profiles []string) error {
	options, err := cli.NewProjectOptions(nil,
		cli.WithWorkingDirectory(directory),
		cli.WithEnvFiles(envFile),
		cli.WithDotEnv,
		cli.WithDefaultConfigPath,
		cli.WithProfiles(profiles),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	json, err := project.MarshalJSON()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(json)
	return err
}
