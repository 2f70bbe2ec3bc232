// Shows /openapi.json in a readable form: every operation with its parameters, body and responses.

import { element } from "./element.js";
import { refusal, send } from "./service.js";

const METHODS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
const find = (selector) => document.querySelector(selector);

let described = null; // the contract that is shown

/** Returns the target of a `$ref`, or the value itself if it is no reference. */
function resolve(thing) {
  if (!thing?.$ref) return thing;
  return thing.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], described);
}

const nameOf = (reference) => reference.split("/").at(-1);
const anchor = (name) => `schema-${name}`;

/** Converts text to elements: text between backticks becomes code. */
function words(text) {
  return (text ?? "").split("`").map((part, place) => (place % 2 === 1 ? element("code", {}, part) : part));
}

// ---------------------------------------------------------------- schemas

/** Describes a schema in a few words. A schema with a name becomes a link to its fields. */
function type(schema) {
  if (!schema || Object.keys(schema).length === 0) return ["anything"];
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [element("a", { href: `#${anchor(name)}` }, name)];
  }
  if ("const" in schema) return [element("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return [element("code", {}, schema.enum.map((value) => JSON.stringify(value)).join(" | "))];
  for (const several of ["oneOf", "anyOf", "allOf"]) {
    if (schema[several]) return joined(schema[several].map(type), several === "allOf" ? " and " : " or ");
  }
  if (schema.type === "array") return ["list of ", ...type(schema.items), ...limits(schema)];
  if (schema.type === "null") return ["null"];
  const types = [schema.type ?? "anything"].flat().filter((name) => name !== "null");
  const orNull = [schema.type].flat().includes("null") ? [" or null"] : [];
  return [types.join(" or "), ...limits(schema), ...orNull];
}

function joined(parts, word) {
  return parts.flatMap((part, place) => (place === 0 ? part : [word, ...part]));
}

const LIMITS = {
  format: (value) => value,
  minimum: (value) => `from ${value}`,
  maximum: (value) => `to ${value}`,
  minLength: (value) => `at least ${value} characters`,
  maxLength: (value) => `at most ${value}`,
  minItems: (value) => `at least ${value}`,
  maxItems: (value) => `at most ${value}`,
  uniqueItems: (value) => (value ? "no duplicates" : null),
  pattern: (value) => `pattern ${value}`,
  default: (value) => `default ${JSON.stringify(value)}`,
};

function limits(schema) {
  const texts = Object.entries(LIMITS)
    .filter(([key]) => key in schema)
    .map(([key, describe]) => describe(schema[key]))
    .filter((text) => text !== null);
  return texts.length === 0 ? [] : [element("span", { className: "soft" }, ` (${texts.join(", ")})`)];
}

function row(name, isRequired, schema, description) {
  return element("tr", {},
    element("th", { scope: "row" }, element("code", {}, name), isRequired ? element("span", { title: "required" }, " *") : ""),
    element("td", {}, ...type(schema)),
    element("td", {}, ...words(description)));
}

function table(rows) {
  return element("div", { className: "scroll" }, element("table", {}, element("tbody", {}, ...rows)));
}

/** Returns a table row for each field of an object, including the fields of its `allOf` parts. */
function fields(schema) {
  const plain = resolve(schema);
  const parts = (plain?.allOf ?? []).flatMap(fields);
  const own = Object.entries(plain?.properties ?? {}).map(([name, property]) =>
    row(name, plain.required?.includes(name), property, property.description));
  return [...parts, ...own];
}

// ---------------------------------------------------------------- operations

function operation(method, path, shared, operation) {
  const parameters = [...shared, ...(operation.parameters ?? [])].map(resolve);
  const body = resolve(operation.requestBody);
  const parts = [];
  if (operation.description) parts.push(element("p", {}, ...words(operation.description)));
  if (parameters.length > 0) {
    parts.push(element("h4", {}, "Parameters"), table(parameters.map((parameter) =>
      row(`${parameter.name}`, parameter.required, parameter.schema,
        [`in the ${parameter.in}`, parameter.description].filter(Boolean).join(": ")))));
  }
  for (const [kind, { schema }] of Object.entries(body?.content ?? {})) {
    const own = schema?.$ref ? [] : fields(schema);
    parts.push(element("h4", {}, "Body"),
      element("p", {}, element("code", {}, kind), ": ", ...type(schema)), ...(own.length > 0 ? [table(own)] : []));
  }
  parts.push(element("h4", {}, "Responses"), table(Object.entries(operation.responses ?? {}).map(responseRow)));
  return element("details", { className: "card operation" },
    element("summary", {},
      element("span", { className: `badge method ${method}` }, method.toUpperCase()), " ",
      element("code", {}, path), " ",
      element("span", { className: "soft" }, ...words(operation.summary))),
    ...parts);
}

function responseRow([status, reference]) {
  const response = resolve(reference);
  const bodies = Object.entries(response.content ?? {}).map(([kind, { schema }]) =>
    element("div", {}, element("code", {}, kind), schema ? ": " : "", ...(schema ? type(schema) : [])));
  const headers = Object.entries(response.headers ?? {}).map(([name, header]) =>
    element("div", { className: "soft", title: resolve(header).description ?? "" }, name));
  return element("tr", {},
    element("th", { scope: "row" }, status),
    element("td", {}, ...words(response.description), ...bodies),
    element("td", {}, ...headers));
}

// ---------------------------------------------------------------- the page

function show(contract) {
  described = contract;
  find("h1").textContent = contract.info.title;
  find(".description").replaceChildren(...words(contract.info.description));
  find(".version").textContent = contract.openapi;

  const groups = new Map((contract.tags ?? []).map(({ name, description }) => [name, { description, made: [] }]));
  for (const [path, item] of Object.entries(contract.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const group = item[method].tags?.[0] ?? "others";
      if (!groups.has(group)) groups.set(group, { made: [] });
      groups.get(group).made.push(operation(method, path, item.parameters ?? [], item[method]));
    }
  }
  const sections = [...groups].filter(([, { made }]) => made.length > 0).map(([name, { description, made }]) =>
    element("section", {}, element("h2", {}, name), ...(description ? [element("p", {}, ...words(description))] : []), ...made));
  const schemas = Object.entries(contract.components?.schemas ?? {}).map(([name, schema]) =>
    element("section", { className: "card", id: anchor(name) },
      element("h3", {}, name),
      ...(schema.description ? [element("p", {}, ...words(schema.description))] : []),
      ...(fields(schema).length > 0 ? [table(fields(schema))] : [element("p", {}, ...type(schema))])));
  find(".contract").replaceChildren(...sections, element("section", {}, element("h2", {}, "Schemas"), ...schemas));
}

const contract = await send("GET", "/openapi.json");
if (contract.ok) {
  show(contract.content);
} else {
  find(".refusal").textContent = refusal(contract);
  find(".refusal").hidden = false;
}
