//! What the model may look things up with. GitLab runs the tools; here they are only named to the model.

use serde_json::{Value, json};

use crate::duo::client::Version;
use crate::duo::identity::Caller;

pub struct Tool {
    pub name: &'static str,
    /// The scope without which GitLab would not run it.
    scope: &'static str,
    /// The first GitLab that has it.
    since: Version,
    resource: &'static str,
    description: &'static str,
    example: &'static str,
}

const ALWAYS: Version = Version::new(0, 0, 0);

const TOOLS: [Tool; 7] = [
    Tool {
        name: "issue_reader",
        scope: "ask_issue",
        since: ALWAYS,
        resource: "issues",
        description: "Gives the title, description, labels, people, dates and comments of one issue.",
        example: "Who is assigned to issue #21?",
    },
    Tool {
        name: "epic_reader",
        scope: "ask_epic",
        since: ALWAYS,
        resource: "epics",
        description: "Gives the title, description, dates and comments of one epic.",
        example: "What is the goal of epic &5?",
    },
    Tool {
        name: "merge_request_reader",
        scope: "ask_merge_request",
        since: Version::new(17, 5, 0),
        resource: "merge requests",
        description: "Gives the title, description, changes, people and comments of one merge request.",
        example: "Which files does merge request !34 change?",
    },
    Tool {
        name: "commit_reader",
        scope: "ask_commit",
        since: Version::new(17, 5, 0),
        resource: "commits",
        description: "Gives the message, author and changes of one commit.",
        example: "What does commit 6104942 change?",
    },
    Tool {
        name: "build_reader",
        scope: "ask_build",
        since: Version::new(17, 5, 0),
        resource: "builds",
        description: "Gives the state and the log of one job of a pipeline.",
        example: "Why did job 1234 fail?",
    },
    Tool {
        name: "work_item_reader",
        scope: "ask_work_item",
        since: Version::new(18, 0, 0),
        resource: "work items",
        description: "Gives the title, description, people and comments of one work item.",
        example: "What is the state of work item #8?",
    },
    Tool {
        name: "gitlab_documentation",
        scope: "documentation_search",
        since: ALWAYS,
        resource: "documentation answers",
        description: "Answers how something is done in GitLab, from its documentation.",
        example: "How do I set up a merge train?",
    },
];

impl Tool {
    /// As the prompt shows it.
    pub fn shown(&self) -> Value {
        json!({
            "name": self.name,
            "description": self.description,
            "resource": self.resource,
            "example": self.example,
        })
    }
}

/// The tools that this GitLab has and that the caller may use.
pub fn available(caller: &Caller, gitlab: Version) -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| gitlab >= tool.since && caller.can(tool.scope)).collect()
}
